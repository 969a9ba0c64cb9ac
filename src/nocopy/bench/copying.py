"""The peer: a host that copies tensors, as wasi-nn hosts do, but with nothing wasted.

wasi-nn has three calls. `set_input` copies the guest's bytes into a tensor of the host's, `compute` runs on
that tensor, `get_output` copies the result into the guest. Real hosts often allocate and copy more than that;
this one allocates once and copies once each way, so what it loses is what the copies cost.

- Where kernels read host memory, the host's tensor is ordinary memory that the device can reach.
- On a discrete GPU it lies in the GPU's own memory. `pageable` copies straight between the guest's pages and
  the GPU. `pinned` goes through page-locked memory, which costs one more copy on the CPU each way.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Protocol

from nocopy.device.protocol import Device, Pages, Program
from nocopy.memory.dtype import DType
from nocopy.memory.linear import LinearMemory
from nocopy.tape import Space, TapeBuilder, Tensor


class Carrier(Protocol):
    """Moves bytes between the guest and the tensor that the device computes on."""

    @property
    def pages(self) -> Pages:
        """The tensor, as the device sees it."""
        ...

    def put(self, address: int, nbytes: int) -> None:
        """Copy from the guest."""
        ...

    def get(self, address: int, nbytes: int) -> None:
        """Copy to the guest."""
        ...

    def close(self) -> None:
        """Free the tensor."""
        ...


class HostCarrier:
    """The tensor is host memory that the device can reach: one memcpy each way."""

    def __init__(self, device: Device, nbytes: int) -> None:
        whole = whole_pages(nbytes)
        self.memory = LinearMemory(whole, reserve=whole, guard=0)
        self._pages = device.share(self.memory.address, whole)

    @property
    def pages(self) -> Pages:
        """See `Carrier`."""
        return self._pages

    def put(self, address: int, nbytes: int) -> None:
        """See `Carrier`."""
        ctypes.memmove(self.memory.address, address, nbytes)

    def get(self, address: int, nbytes: int) -> None:
        """See `Carrier`."""
        ctypes.memmove(address, self.memory.address, nbytes)

    def close(self) -> None:
        """See `Carrier`."""
        self.pages.close()
        self.memory.close()


def whole_pages(nbytes: int) -> int:
    """Bytes of the pages that hold `nbytes`."""
    return -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE


class CopyingHost:
    """`set_input`, `compute` and `get_output`, for the guest in `copying.wasm`.

    Args:
        device: plays the tape that negates the tensor.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.address = 0
        """Where byte 0 of the guest's memory lies; set once the guest is there."""
        self.copied = 0
        """Bytes copied so far."""
        self.carrier: Carrier | None = None
        self.program: Program | None = None

    def hold(self, carrier: Carrier, nbytes: int) -> None:
        """Compute on this carrier's tensor of `nbytes` bytes from now on, and close it in the end."""
        self.close()
        tensor = Tensor(Space.GUEST, 0, (nbytes // 4,), DType.F32)
        tape = TapeBuilder()
        tape.unary("neg", tensor, tensor)
        self.carrier = carrier
        self.program = self.device.compile(tape.build({Space.GUEST: nbytes}), {Space.GUEST: carrier.pages})

    def set_input(self, offset: int, nbytes: int) -> int:
        """Copy the guest's tensor in."""
        assert self.carrier is not None
        self.carrier.put(self.address + offset, nbytes)
        self.copied += nbytes
        return 0

    def compute(self) -> int:
        """Negate it."""
        assert self.program is not None
        self.device.play(self.program)
        return 0

    def get_output(self, offset: int, nbytes: int) -> int:
        """Copy it back."""
        assert self.carrier is not None
        self.carrier.get(self.address + offset, nbytes)
        self.copied += nbytes
        return 0

    def close(self) -> None:
        """Free the program and the tensor."""
        if self.program is not None:
            self.program.close()
            self.program = None
        if self.carrier is not None:
            self.carrier.close()
            self.carrier = None


def carriers(device: Device, nbytes: int) -> dict[str, Carrier]:
    """The ways in which a copying host could serve this device, by name; the first is the usual one."""
    if device.info.name == "cuda":
        from nocopy.bench.copying_cuda import PageableCarrier, PinnedCarrier
        from nocopy.device.cuda import CudaDevice

        assert isinstance(device, CudaDevice)
        return {
            "pageable copy": PageableCarrier(device, nbytes),
            "pinned copy": PinnedCarrier(device, nbytes),
        }
    return {"copy": HostCarrier(device, nbytes)}
