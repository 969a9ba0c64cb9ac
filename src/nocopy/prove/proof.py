"""Collects the evidence for one device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nocopy.bench.roundtrip import RoundTrip, open_sharing, round_trips
from nocopy.device.discovery import open_device
from nocopy.device.protocol import Device, DeviceInfo, Mode
from nocopy.errors import DeviceError
from nocopy.memory import DType
from nocopy.prove.residency import TENSOR_BYTES, residency

Progress = Callable[[str, float], None]

LARGEST = 256 << 20  # bytes of the largest round trip
SMALLEST = 1 << 10
MATMUL_SIZE = 512  # rows and columns
TOLERANCE = 3e-5
"""Relative: 512 * 2**-24 bounds the error of an f32 sum of 512 positive terms, in any order."""


@dataclass(frozen=True)
class Proof:
    """What was found. Sizes are in bytes.

    `pointers` are the addresses of byte 0 of one guest's memory: by the pages that were reserved, by the
    device's kernels, and by Wasmtime. `rss_growth_shared` and `rss_growth_copied` say by how much resident
    memory grew, beyond the tensor itself, when a guest's tensor of 16 MiB was computed on. `ledger` is the
    matrix product's.
    """

    device: DeviceInfo
    pointers: dict[str, int]
    ledger: dict[str, int]
    rss_growth_shared: int
    rss_growth_copied: int
    matmul_max_rel_error: float
    roundtrip: list[RoundTrip]

    @property
    def same_pointer(self) -> bool:
        """Whether memory, device and Wasmtime name the same address."""
        return len(set(self.pointers.values())) == 1

    @property
    def holds(self) -> bool:
        """Whether nothing was copied, the product is right, and the pointers are as the mode says."""
        same = self.same_pointer or self.device.mode is not Mode.SAME_POINTER
        host = self.pointers["memory"] == self.pointers["wasm"]
        return same and host and not self.ledger["copied"] and self.matmul_max_rel_error <= TOLERANCE

    def as_dict(self) -> dict[str, Any]:
        """What `prove --json` prints."""
        return {
            "device": self.device.name,
            "mode": self.device.mode.value,
            "pointers": self.pointers,
            "same_pointer": self.same_pointer,
            "copied_bytes": self.ledger["copied"],
            "rss_growth_shared": self.rss_growth_shared,
            "rss_growth_copied": self.rss_growth_copied,
            "matmul_max_rel_error": self.matmul_max_rel_error,
            "roundtrip": [
                {
                    "bytes": trip.nbytes,
                    "shared_us": round(trip.shared * 1e6, 3),
                    "staged_us": round(next(iter(trip.copied.values())) * 1e6, 3),
                }
                for trip in self.roundtrip
            ],
        }


def prove(
    device: str = "auto",
    *,
    largest: int = LARGEST,
    allow_copy: bool = False,
    progress: Progress = lambda _what, _done: None,
) -> Proof:
    """Collect the evidence.

    Args:
        device: as `open_device` takes it.
        largest: bytes of the largest round trip; they go up from 1 KiB in steps of 4.
        allow_copy: as `open_device` takes it.
        progress: called with what is going on and how much is done, 0 to 1.

    Raises:
        DeviceUnavailableError: the device is not on this machine.
        CopyRefusedError: it could only copy.
        DeviceError: it computed something wrong.
    """
    progress("matrix product", 0.0)
    opened = open_device(device, allow_copy=allow_copy)
    try:
        info = opened.info
        pointers, ledger, error = _matrix_product(opened)
        progress(f"resident memory with {TENSOR_BYTES >> 20} MiB shared", 0.05)
        shared = residency(info.name, "shared", allow_copy=allow_copy)
        progress(f"resident memory with {TENSOR_BYTES >> 20} MiB copied", 0.1)
        copied = residency(info.name, "copied", allow_copy=allow_copy)
        sizes = [n for n in (SMALLEST << shift for shift in range(0, 40, 2)) if n <= largest] or [largest]
        trips = round_trips(
            opened, sizes, lambda what, done: progress(f"round trips of {what}", 0.15 + 0.85 * done)
        )
    finally:
        opened.close()
    return Proof(info, pointers, ledger, shared, copied, error, trips)


def _matrix_product(device: Device) -> tuple[dict[str, int], dict[str, int], float]:
    """Have a guest fill two matrices and the device multiply them, and check every element.

    Returns:
        (addresses of byte 0 of the guest's memory, the ledger, the largest relative error)
    """
    n = MATMUL_SIZE
    with open_sharing(device) as guest:
        offset: int = guest.call("matmul", n)
        if offset < 0:
            raise DeviceError(f"a product of {n} x {n} matrices was asked for; {guest.last_error or offset}")
        views = [guest.memory.view((n, n), DType.F32, offset + i * n * n * 4) for i in range(3)]
        a, b, c = (np.asarray(view).astype(np.float64) for view in views)
        exact = a @ b
        error = float(np.max(np.abs(c - exact) / exact))
        assert guest.pages is not None  # its memory has bytes
        pointers = {
            "memory": guest.memory.address,
            "device": guest.pages.device_address,
            "wasm": guest.wasm_address,
        }
        return pointers, guest.ledger.as_dict(), error
