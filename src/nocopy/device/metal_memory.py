"""Metal buffers over host pages, or over memory that Metal allocates."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nocopy.errors import DeviceError

_OBJECT = {"type": b"@", "already_retained": True}
_ERROR = {"type": b"^@", "type_modifier": b"o"}
_ID, _NUMBER = {"type": b"@"}, {"type": b"Q"}
_BYTES = {"type": b"^v", "type_modifier": b"n", "c_array_length_in_arg": 3}
_DEALLOCATOR = {
    "type": b"@?",
    "callable": {
        "retval": {"type": b"v"},
        "arguments": {0: {"type": b"^v"}, 1: {"type": b"^v"}, 2: {"type": b"Q"}},
    },
}
OWNERSHIP: dict[bytes, dict[int, Any]] = {
    b"newCommandQueue": {},
    b"newBufferWithLength:options:": {2: _NUMBER, 3: _NUMBER},
    b"newBufferWithBytesNoCopy:length:options:deallocator:": {
        2: _BYTES, 3: _NUMBER, 4: _NUMBER, 5: _DEALLOCATOR,
    },
    b"newLibraryWithSource:options:error:": {2: _ID, 3: _ID, 4: _ERROR},
    b"newFunctionWithName:": {2: _ID},
    b"newComputePipelineStateWithFunction:error:": {2: _ID, 3: _ERROR},
}  # fmt: skip
"""Methods whose result belongs to the caller, with their arguments; indices 0 and 1 are Objective-C's."""


def describe_ownership(objc: Any) -> None:
    """Tell the bridge that the results of OWNERSHIP are retained already, so that it releases them.

    See https://github.com/ronaldoussoren/pyobjc/issues/690. A registration replaces the whole description.
    """
    for selector, arguments in OWNERSHIP.items():
        description = {"required": True, "retval": _OBJECT, "arguments": arguments}
        objc.registerMetaDataForSelector(b"NSObject", selector, description)


@dataclass(eq=False)
class MetalBuffer:
    """An MTLBuffer; see `chunks.Chunk`. `handle` is None once it was destroyed."""

    handle: Any
    nbytes: int
    device_address: int
    mapped: int


@dataclass(frozen=True)
class Importer:
    """Makes buffers of host pages; see `chunks.Maker`."""

    metal: Any
    device: Any
    product: str
    alignment: int

    @property
    def limit(self) -> int:
        """Bytes of the largest buffer."""
        return int(self.device.maxBufferLength()) // self.alignment * self.alignment

    def make(self, address: int, nbytes: int) -> MetalBuffer:
        """Import host pages.

        Raises:
            DeviceError: Metal refuses, or has copied.
        """
        what = f"importing {nbytes} bytes of host pages at {address:#x}"
        host = memoryview((ctypes.c_char * nbytes).from_address(address))
        shared = self.metal.MTLResourceStorageModeShared
        handle = self.device.newBufferWithBytesNoCopy_length_options_deallocator_(host, nbytes, shared, None)
        if handle is None:
            raise DeviceError(f"{what}: {self.product} refuses; at most {self.limit} bytes make one buffer")
        if host_address(handle, nbytes) != address:
            raise DeviceError(f"{what}: {self.product} made a buffer at another host address")
        return MetalBuffer(handle, nbytes, int(handle.gpuAddress()), 0)

    def destroy(self, chunk: Any) -> None:
        """Drop the only reference, which lets go of the pages."""
        chunk.handle = None


@dataclass(frozen=True)
class Allocator(Importer):
    """Makes zero-filled buffers of Metal's own memory, which the CPU reaches too."""

    def make(self, address: int, nbytes: int) -> MetalBuffer:
        """Allocate; the host address is of no interest.

        Raises:
            DeviceError: there is not that much.
        """
        del address
        handle = self.device.newBufferWithLength_options_(nbytes, self.metal.MTLResourceStorageModeShared)
        if handle is None:
            raise DeviceError(
                f"allocating {nbytes} bytes was asked for; {self.product} has no room"
                f" (largest buffer {self.limit} bytes)"
            )
        where = host_address(handle, nbytes)
        ctypes.memset(where, 0, nbytes)
        return MetalBuffer(handle, nbytes, int(handle.gpuAddress()), where)


@dataclass(frozen=True)
class Copier(Allocator):
    """Makes buffers of Metal's own memory that hold what host pages hold.

    `copied` is called with the number of bytes after each buffer.
    """

    copied: Callable[[int], None]

    def make(self, address: int, nbytes: int) -> MetalBuffer:
        """Allocate and copy."""
        buffer = super().make(address, nbytes)
        ctypes.memmove(buffer.mapped, address, nbytes)
        self.copied(nbytes)
        return buffer


def host_address(handle: Any, nbytes: int) -> int:
    """Where the CPU sees a buffer."""
    return ctypes.addressof(ctypes.c_char.from_buffer(handle.contents().as_buffer(nbytes)))
