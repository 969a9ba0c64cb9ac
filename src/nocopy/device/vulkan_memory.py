"""Memory that Vulkan kernels reach by address: imported host pages, staged copies of them, memory of its own.

A driver limits the size of a buffer (4 GiB less 2 MiB is common), so pages are imported in chunks. The
addresses of two chunks need not follow each other; an operand that crosses from one to the next gets an
import of its own, made when a program first needs it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nocopy.device.protocol import Mode, check_range
from nocopy.device.vulkan_api import BUFFER_USAGE, Api
from nocopy.errors import ClosedError, DeviceError
from nocopy.memory.ledger import Ledger

HOST_MEMORY = 2 | 4  # VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT, HOST_COHERENT_BIT
DEVICE_MEMORY = 1  # VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT
ALLOCATE_DEVICE_ADDRESS = 2  # VK_MEMORY_ALLOCATE_DEVICE_ADDRESS_BIT
MINIMUM_BYTES = 256


@dataclass(frozen=True, eq=False)
class Buffer:
    """A buffer bound to memory. `mapped` is where the CPU sees memory that the driver allocated; else 0."""

    handle: Any
    memory: Any
    nbytes: int
    device_address: int
    mapped: int = 0


def create_buffer(api: Api, nbytes: int, properties: int) -> Buffer:
    """Allocate `nbytes` of memory with these properties; mapped if the CPU can see it.

    Raises:
        DeviceError: there is not that much; the message names the size.
    """
    what = f"allocating {nbytes} bytes of {'host-visible' if properties & 2 else 'device'} memory"
    return _bind(api, nbytes, what, properties, None)


def import_buffer(api: Api, address: int, nbytes: int) -> Buffer:
    """Import host pages.

    Raises:
        DeviceError: the driver refuses; the message names the size.
    """
    vk = api.vk
    kind = vk.VK_EXTERNAL_MEMORY_HANDLE_TYPE_HOST_ALLOCATION_BIT_EXT
    what = f"importing {nbytes} bytes of host pages at {address:#x}"
    pointer = api.ffi.cast("void *", address)
    info = api.new("VkMemoryHostPointerPropertiesEXT", "MEMORY_HOST_POINTER_PROPERTIES_EXT")
    api.check(api.host_pointer_properties(api.device, kind, pointer, info), what)
    source = api.new(
        "VkImportMemoryHostPointerInfoEXT", "IMPORT_MEMORY_HOST_POINTER_INFO_EXT",
        handleType=kind, pHostPointer=pointer,
    )  # fmt: skip
    return _bind(api, nbytes, what, HOST_MEMORY, (kind, source, int(info.memoryTypeBits)))


def destroy_buffer(api: Api, buffer: Buffer) -> None:
    """Free a buffer and its memory; imported host pages stay as they are."""
    null = api.ffi.NULL
    api.lib.vkDestroyBuffer(api.device, buffer.handle, null)
    api.lib.vkFreeMemory(api.device, buffer.memory, null)


def _bind(api: Api, nbytes: int, what: str, properties: int, imported: tuple[int, Any, int] | None) -> Buffer:
    ffi, lib = api.ffi, api.lib
    external = api.new("VkExternalMemoryBufferCreateInfo", "EXTERNAL_MEMORY_BUFFER_CREATE_INFO")
    info = api.new("VkBufferCreateInfo", "BUFFER_CREATE_INFO", size=nbytes, usage=BUFFER_USAGE)
    if imported:
        external.handleTypes = imported[0]
        info.pNext = ffi.cast("void *", external)
    buffer = ffi.new("VkBuffer *")
    api.check(lib.vkCreateBuffer(api.device, info, ffi.NULL, buffer), what)
    needs = ffi.new("VkMemoryRequirements *")
    lib.vkGetBufferMemoryRequirements(api.device, buffer[0], needs)
    memory = ffi.new("VkDeviceMemory *")
    try:
        if imported and needs.size > nbytes:
            raise DeviceError(f"{what}: {api.product} needs {needs.size} bytes for a buffer of that size")
        allowed = int(needs.memoryTypeBits) & (imported[2] if imported else ~0)
        flags = api.new(
            "VkMemoryAllocateFlagsInfo", "MEMORY_ALLOCATE_FLAGS_INFO",
            flags=ALLOCATE_DEVICE_ADDRESS,
            pNext=imported[1] if imported else ffi.NULL,
        )  # fmt: skip
        allocate = api.new(
            "VkMemoryAllocateInfo", "MEMORY_ALLOCATE_INFO", pNext=flags,
            allocationSize=nbytes if imported else needs.size,
            memoryTypeIndex=_memory_type(api, what, allowed, properties),
        )  # fmt: skip
        api.check(lib.vkAllocateMemory(api.device, allocate, ffi.NULL, memory), what)
        api.check(lib.vkBindBufferMemory(api.device, buffer[0], memory[0], 0), what)
        mapped = _map(api, memory[0], what) if not imported and properties & HOST_MEMORY else 0
    except Exception:
        lib.vkDestroyBuffer(api.device, buffer[0], ffi.NULL)
        if memory[0] != ffi.NULL:
            lib.vkFreeMemory(api.device, memory[0], ffi.NULL)
        raise
    where = api.new("VkBufferDeviceAddressInfo", "BUFFER_DEVICE_ADDRESS_INFO", buffer=buffer[0])
    address = int(lib.vkGetBufferDeviceAddress(api.device, where))
    return Buffer(buffer[0], memory[0], nbytes, address, mapped)


def _memory_type(api: Api, what: str, allowed: int, properties: int) -> int:
    for index, flags in enumerate(api.memory_types):
        if allowed >> index & 1 and flags & properties == properties:
            return index
    raise DeviceError(
        f"{what}: {api.product} has no memory type for it (allowed {allowed:#x}, {properties:#x})"
    )


def _map(api: Api, memory: Any, what: str) -> int:
    out = api.ffi.new("void **")
    whole = 2**64 - 1  # VK_WHOLE_SIZE
    api.check(api.lib.vkMapMemory(api.device, memory, 0, whole, 0, out), what)
    return int(api.ffi.cast("uintptr_t", out[0]))


@dataclass(eq=False)
class VulkanPages:
    """A range that kernels reach: chunks in order, and windows over their seams. See `Pages`.

    `make` imports or allocates the chunk of the given host address and size; `imported` says which. `generation`
    rises when device addresses change; programs compiled before are refused.
    """

    api: Api
    address: int
    nbytes: int
    mode: Mode
    make: Callable[[int, int], Buffer]
    imported: bool
    ledger: Ledger | None = None
    forget: Callable[[VulkanPages], None] = lambda _: None
    generation: int = field(default=0, init=False)
    closed: bool = field(default=False, init=False)
    chunks: list[Buffer] = field(default_factory=list[Buffer], init=False)
    windows: dict[tuple[int, int], Buffer] = field(default_factory=dict[tuple[int, int], Buffer], init=False)

    def __post_init__(self) -> None:
        self.chunks = self._make_chunks(self.nbytes)

    @property
    def device_address(self) -> int:
        """Address of the first byte as kernels see it."""
        return self.chunks[0].device_address if self.chunks else 0

    def _make_chunks(self, nbytes: int) -> list[Buffer]:
        chunks: list[Buffer] = []
        limit = self.api.limits.buffer
        try:
            for start in range(0, nbytes, limit):
                chunks.append(self.make(self.address + start, min(limit, nbytes - start)))
        except DeviceError:
            self._destroy(chunks)
            raise
        return chunks

    def _destroy(self, buffers: list[Buffer]) -> None:
        for buffer in buffers:
            destroy_buffer(self.api, buffer)

    def resolve(self, start: int, stop: int) -> int:
        """The device address of byte `start`, from which the bytes up to `stop` follow.

        Raises:
            ClosedError: the pages are closed.
            DeviceError: no single buffer can hold them.
        """
        if self.closed:
            raise ClosedError("compiling a tape was asked for; its pages are closed")
        limit = self.api.limits.buffer
        chunk = start // limit
        if stop <= (chunk + 1) * limit or self._contiguous():
            return self.chunks[chunk].device_address + start % limit
        alignment = self.api.limits.alignment
        low, high = start // alignment * alignment, -(-stop // alignment) * alignment
        if high - low > limit or not self.imported:
            raise DeviceError(
                f"an operand over bytes {start} to {stop} was asked for; {self.api.product} reaches at most"
                f" {limit} bytes at once"
                + ("" if self.imported else f", and here none across a multiple of {limit}")
                + "; use smaller tensors"
            )
        if (low, high) not in self.windows:
            self.windows[low, high] = self.make(self.address + low, high - low)
        return self.windows[low, high].device_address + start - low

    def _contiguous(self) -> bool:
        """True if chunks follow each other in the device's addresses, as they do where these are the host's."""
        first, limit = self.device_address, self.api.limits.buffer
        return all(c.device_address == first + i * limit for i, c in enumerate(self.chunks))

    def staged(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """For bytes [start, stop): pieces as (host address, address of the staged copy, size)."""
        limit = self.api.limits.buffer
        pieces: list[tuple[int, int, int]] = []
        while start < stop:
            end = min(stop, (start // limit + 1) * limit)
            copy = self.chunks[start // limit].mapped + start % limit
            pieces.append((self.address + start, copy, end - start))
            start = end
        return pieces

    def grow(self, nbytes: int) -> None:
        """See `Pages.grow`: imports the whole range anew, then lets go of the old import."""
        if self.closed:
            raise ClosedError("growing was asked for; these pages are closed")
        check_range(self.address, nbytes, self.api.limits.alignment)
        if nbytes == self.nbytes:
            return
        before = [c.device_address for c in self.chunks]
        moved = bool(self.windows)
        self._replace(nbytes)
        moved |= before != [c.device_address for c in self.chunks[: len(before)]]
        self.generation += moved
        if self.ledger and self.imported:
            self.ledger.shared += nbytes - self.nbytes
        self.nbytes = nbytes

    def _replace(self, nbytes: int) -> None:
        """Make the chunks anew for `nbytes`. If that fails the old ones stay, or come back."""
        old, windows = self.chunks, list(self.windows.values())
        try:
            self.chunks = self._make_chunks(nbytes)
            self._destroy([*old, *windows])
        except DeviceError:
            if not self.imported:
                raise
            # A driver may refuse to import pages twice, so give the old import back and try once more.
            self._destroy([*old, *windows])
            self.chunks = []
            try:
                self.chunks = self._make_chunks(nbytes)
            except DeviceError:
                self.chunks = self._make_chunks(self.nbytes)
                self.windows = {}
                self.generation += 1
                raise
        self.windows = {}

    def close(self) -> None:
        """See `Pages.close`."""
        if self.closed:
            return
        self.closed = True
        self.forget(self)
        if not self.api.lost:
            self._destroy([*self.chunks, *self.windows.values()])
        self.chunks, self.windows = [], {}


def copy_bytes(source: int, target: int, nbytes: int) -> None:
    """Copy host memory."""
    ctypes.memmove(target, source, nbytes)
