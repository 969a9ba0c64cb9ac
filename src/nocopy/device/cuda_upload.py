"""Weights from mapped files to the GPU's own memory: once, at the speed of the bus.

The driver copies at full speed only from pinned memory, and a mapped file cannot be pinned everywhere. So a
chunk goes from the mapping to one of two pinned slots, where page faults read it from the disk, while the
chunk before it is on its way from the other slot to the GPU.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from nocopy.device.cuda_pages import CudaPages, DevicePages, MemoryDriver
from nocopy.device.protocol import check_range
from nocopy.errors import DeviceError, DeviceLostError
from nocopy.memory.ledger import Ledger

SLOT = 16 << 20
"""Bytes of a pinned slot: long enough that starting a copy does not count, short enough to pin at once."""

Ranges = Sequence[tuple[int, int]]


class UploadDriver(MemoryDriver, Protocol):
    """The part of `cuda_driver.Driver` that uploads; its context is current during every call."""

    def pin(self, nbytes: int) -> int:
        """Host memory that copies read from at the bus's speed."""
        ...

    def unpin(self, address: int) -> None:
        """Free what `pin` returned."""
        ...


def upload(
    driver: UploadDriver,
    ranges: Ranges,
    forget: Callable[[CudaPages], None],
    ledger: Ledger | None,
    progress: Callable[[int], None] | None,
) -> tuple[DevicePages, list[int]]:
    """Copy host ranges to device memory, one after another: the memory, and where each begins in it.

    Raises:
        UsageError: a range is empty or not on pages.
        DeviceError: there is too little memory; nothing was copied.
    """
    starts: list[int] = []
    nbytes = 0
    for address, size in ranges:
        check_range(address, size, mmap.PAGESIZE)
        starts.append(nbytes)
        nbytes += size
    driver.enter()
    try:
        pages = _room(driver, nbytes, forget)
        try:
            _copy(driver, ranges, pages.device_address, min(SLOT, nbytes), progress)
        except BaseException:
            driver.free(pages.device_address)
            raise
    finally:
        driver.leave()
    if ledger:
        ledger.uploaded += nbytes
    return pages, starts


def _room(driver: UploadDriver, nbytes: int, forget: Callable[[CudaPages], None]) -> DevicePages:
    try:
        return DevicePages(driver, nbytes, forget)
    except DeviceLostError:
        raise
    except DeviceError as e:
        raise DeviceError(f"uploading {nbytes} bytes of weights was asked for; {e}") from e


def _copy(
    driver: UploadDriver, ranges: Ranges, target: int, slot: int, progress: Callable[[int], None] | None
) -> None:
    if not slot:
        return
    pinned = driver.pin(2 * slot)
    copied = 0
    try:
        for number, (address, size) in enumerate(_chunks(ranges, slot)):
            chosen = pinned + number % 2 * slot
            ctypes.memmove(chosen, address, size)
            driver.finish(slot)  # the chunk before, whose slot is the next one's
            if progress and copied:
                progress(copied)
            driver.copy_in(target + copied, chosen, size)
            copied += size
    finally:
        driver.finish(slot)
        driver.unpin(pinned)
    if progress:
        progress(copied)


def _chunks(ranges: Ranges, most: int) -> Iterator[tuple[int, int]]:
    """The same bytes in pieces of at most `most`."""
    for address, size in ranges:
        for at in range(0, size, most):
            yield address + at, min(most, size - at)
