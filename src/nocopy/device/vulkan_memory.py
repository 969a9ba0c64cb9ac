"""Buffers that Vulkan kernels reach by address: over imported host pages, or over memory of the driver's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nocopy.device.vulkan_api import BUFFER_USAGE, Api
from nocopy.errors import DeviceError

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


@dataclass(frozen=True)
class Importer:
    """Makes chunks of host pages; see `chunks.Maker`."""

    api: Api

    @property
    def limit(self) -> int:
        """Bytes of the largest chunk."""
        return self.api.limits.buffer

    @property
    def alignment(self) -> int:
        """Bytes."""
        return self.api.limits.alignment

    @property
    def product(self) -> str:
        """The hardware's name."""
        return self.api.product

    def make(self, address: int, nbytes: int) -> Buffer:
        """Import host pages."""
        return import_buffer(self.api, address, nbytes)

    def destroy(self, chunk: Any) -> None:
        """Free a chunk, unless the device is lost: it may still write there."""
        if not self.api.lost:
            destroy_buffer(self.api, chunk)


@dataclass(frozen=True)
class Allocator(Importer):
    """Makes chunks of the driver's own memory."""

    properties: int

    def make(self, address: int, nbytes: int) -> Buffer:
        """Allocate memory; the host address is of no interest."""
        del address
        return create_buffer(self.api, nbytes, self.properties)
