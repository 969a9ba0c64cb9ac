"""Carriers whose tensor lies in a discrete GPU's own memory.

Copies go on the stream on which the device plays, so they and the kernel are in order with no wait between.
"""

from __future__ import annotations

import ctypes

from nocopy.bench.copying import whole_pages
from nocopy.device.cuda import CudaDevice
from nocopy.device.cuda_pages import CudaPages
from nocopy.memory.linear import LinearMemory


class PageableCarrier:
    """The driver copies straight between the guest's ordinary pages and the GPU."""

    def __init__(self, device: CudaDevice, nbytes: int) -> None:
        self.driver = device.driver
        self._pages = device.allocate(nbytes)

    @property
    def pages(self) -> CudaPages:
        """See `Carrier`."""
        return self._pages

    def put(self, address: int, nbytes: int) -> None:
        """See `Carrier`."""
        with self.driver.current():
            self.driver.copy_in(self.pages.device_address, address, nbytes)

    def get(self, address: int, nbytes: int) -> None:
        """See `Carrier`."""
        with self.driver.current():
            self.driver.copy_out(address, self.pages.device_address, nbytes)
            self.driver.wait(None)

    def close(self) -> None:
        """See `Carrier`."""
        self.pages.close()


class PinnedCarrier(PageableCarrier):
    """Through page-locked memory: a faster bus transfer, and one more copy on the CPU each way."""

    def __init__(self, device: CudaDevice, nbytes: int) -> None:
        super().__init__(device, nbytes)
        whole = whole_pages(nbytes)
        self.memory = LinearMemory(whole, reserve=whole, guard=0)
        self.locked = device.share(self.memory.address, whole)

    def put(self, address: int, nbytes: int) -> None:
        """See `Carrier`."""
        ctypes.memmove(self.memory.address, address, nbytes)
        super().put(self.memory.address, nbytes)

    def get(self, address: int, nbytes: int) -> None:
        """See `Carrier`."""
        super().get(self.memory.address, nbytes)
        ctypes.memmove(address, self.memory.address, nbytes)

    def close(self) -> None:
        """See `Carrier`."""
        self.locked.close()
        self.memory.close()
        super().close()
