"""Carriers whose tensor lies in a discrete GPU's own memory."""

from __future__ import annotations

import ctypes
from importlib import import_module
from typing import Any

from nocopy.device.protocol import Device
from nocopy.errors import DeviceError

driver: Any = import_module("cuda.bindings.driver")


class PageableCarrier:
    """The driver copies straight between the guest's ordinary pages and the GPU."""

    def __init__(self, device: Device, nbytes: int) -> None:
        self.pages = device.allocate(nbytes)

    def put(self, address: int, nbytes: int) -> None:
        """See `Carrier`."""
        _check(driver.cuMemcpyHtoD(self.pages.device_address, address, nbytes))

    def get(self, address: int, nbytes: int) -> None:
        """See `Carrier`."""
        _check(driver.cuMemcpyDtoH(address, self.pages.device_address, nbytes))

    def close(self) -> None:
        """See `Carrier`."""
        self.pages.close()


class PinnedCarrier(PageableCarrier):
    """Through page-locked memory: a faster bus transfer, and one more copy on the CPU."""

    def __init__(self, device: Device, nbytes: int) -> None:
        super().__init__(device, nbytes)
        self.pinned: int = int(_check(driver.cuMemHostAlloc(nbytes, 0)))

    def put(self, address: int, nbytes: int) -> None:
        """See `Carrier`."""
        ctypes.memmove(self.pinned, address, nbytes)
        super().put(self.pinned, nbytes)

    def get(self, address: int, nbytes: int) -> None:
        """See `Carrier`."""
        super().get(self.pinned, nbytes)
        ctypes.memmove(address, self.pinned, nbytes)

    def close(self) -> None:
        """See `Carrier`."""
        _check(driver.cuMemFreeHost(self.pinned))
        super().close()


def _check(answer: tuple[Any, ...]) -> Any:
    """The value of a driver call, which returns (status, value) or (status,)."""
    if answer[0] != driver.CUresult.CUDA_SUCCESS:
        raise DeviceError(f"a copy for the peer was asked for; the CUDA driver answered {answer[0].name}")
    return answer[1] if len(answer) > 1 else None
