"""Which 64 KiB pages of a live linear memory hold anything but zeros.

Two steps, both without a loop over pages. The operating system says which pages were never touched: those
of a private anonymous range read as zero, need no look, and looking would cost a page fault each. The rest is
read: a page whose sampled words are all zero is read whole.
"""

from __future__ import annotations

import mmap
import os
import sys
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from nocopy.snapshot.format import PAGE
from nocopy.snapshot.mappings import anonymous_ranges

Mask = npt.NDArray[np.bool_]
WORDS: Final = PAGE // 8
SAMPLES: Final = slice(0, None, WORDS // 16)
"""Words looked at first: 16 of a page, one in each 4 KiB."""
SMALL: Final = 1 << 18
"""Bytes up to which looking costs less than asking which pages were touched."""
BLOCK: Final = 1024
"""Pages that are reduced at a time, so that what the samples read stays small."""
PAGEMAP: Final = "/proc/self/pagemap"
IN_USE: Final = np.uint64(0b11 << 62)
"""Bits of a pagemap entry: the page is in memory (63) or swapped out (62)."""


@dataclass(frozen=True)
class _Exporter:
    """What NumPy makes an array of."""

    __array_interface__: dict[str, Any]


def bytes_at(address: int, size: int) -> npt.NDArray[np.uint8]:
    """Bytes of this process, u8 [size]; whoever asks keeps them mapped."""
    found = {"version": 3, "shape": (size,), "typestr": "|u1", "data": (address, False)}
    return np.asarray(_Exporter(found))


def nonzero_pages(address: int, size: int) -> Mask:
    """Find the pages that must be stored.

    Args:
        address: first byte, a multiple of the host's page size.
        size: bytes, a multiple of 64 KiB; all readable, and nobody writes to them meanwhile.

    Returns:
        bool [size / 64 KiB]
    """
    count = size // PAGE
    pages = bytes_at(address, size).view(np.uint64).reshape(count, WORDS)
    found = np.zeros(count, np.bool_)
    if size <= SMALL:
        return _nonzero(pages)
    for start, end in runs(touched(address, size)):
        for at in range(start, end, BLOCK):
            found[at : min(at + BLOCK, end)] = _nonzero(pages[at : min(at + BLOCK, end)])
    return found


def _nonzero(pages: npt.NDArray[np.uint64]) -> Mask:
    """u64 [n, 8192] -> bool [n]. Each step looks only at what the one before took for zeros."""
    found = pages[:, 0] != 0
    for start, end in runs(~found):
        found[start:end] = np.any(pages[start:end, SAMPLES], axis=1)
    for start, end in runs(~found):
        found[start:end] = np.bitwise_or.reduce(pages[start:end], axis=1) != 0
    return found


def runs(mask: Mask) -> list[tuple[int, int]]:
    """Where a mask is true, as (first, one past the last) of each run."""
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def touched(address: int, size: int) -> Mask:
    """Pages that were ever written or read, as far as the system says; all of them where it does not.

    Only a private anonymous mapping reads as zero where nothing was touched: in a thawed memory an untouched
    page holds what its file holds.
    """
    count = size // PAGE
    found = np.ones(count, np.bool_)
    if not sys.platform.startswith("linux"):
        return found
    try:
        for start, end in anonymous_ranges(address, address + size):
            first, last = -(-(start - address) // PAGE), (end - address) // PAGE
            if first < last:
                found[first:last] = _in_use(address + first * PAGE, last - first)
    except OSError:  # /proc is hidden in some containers
        found[:] = True
    return found


def _in_use(address: int, count: int) -> Mask:
    """Read the kernel's page map for so many 64 KiB pages: true where any of its host pages is in use."""
    small = PAGE // mmap.PAGESIZE
    wanted = count * small * 8
    with open(PAGEMAP, "rb", buffering=0) as file:
        raw = os.pread(file.fileno(), wanted, address // mmap.PAGESIZE * 8)
    if len(raw) != wanted:
        return np.ones(count, np.bool_)
    used: Mask = np.any(np.frombuffer(raw, np.uint64).reshape(count, small) & IN_USE, axis=1)
    return used
