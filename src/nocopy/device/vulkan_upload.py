"""Copies host pages into a device's own memory, once: the weights of a model on a discrete GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

from nocopy.device.vulkan_commands import Queue
from nocopy.device.vulkan_memory import (
    DEVICE_MEMORY,
    HOST_MEMORY,
    Buffer,
    Importer,
    create_buffer,
)

STAGING_BYTES = 16 << 20
"""Copied at a time: large enough that submitting costs little, small enough to stay in memory."""


@dataclass(frozen=True)
class Uploader(Importer):
    """Makes chunks of device memory that hold what host pages hold; see `chunks.Maker`.

    `copied` is called with the number of bytes after each piece.
    """

    queue: Queue
    copied: Callable[[int], None]

    def make(self, address: int, nbytes: int) -> Buffer:
        """Allocate device memory and copy the pages there.

        Raises:
            DeviceError: there is not that much memory.
        """
        target = create_buffer(self.api, nbytes, DEVICE_MEMORY)
        try:
            staging = create_buffer(self.api, min(nbytes, STAGING_BYTES), HOST_MEMORY)
            try:
                for start in range(0, nbytes, STAGING_BYTES):
                    self._copy(target, start, staging, address, min(STAGING_BYTES, nbytes - start))
            finally:
                self.destroy(staging)
        except BaseException:
            self.destroy(target)
            raise
        return target

    def _copy(self, target: Buffer, start: int, staging: Buffer, address: int, nbytes: int) -> None:
        ctypes.memmove(staging.mapped, address + start, nbytes)
        commands = self.queue.begin()
        region = self.api.ffi.new("VkBufferCopy *", {"dstOffset": start, "size": nbytes})
        self.api.lib.vkCmdCopyBuffer(commands, staging.handle, target.handle, 1, region)
        self.queue.run_once(commands, f"uploading {nbytes} bytes")
        self.copied(nbytes)
