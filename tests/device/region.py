"""Host pages between two inaccessible ones: what reads or writes one byte too far ends the process."""

from __future__ import annotations

import ctypes
import mmap
import sys

import numpy as np
import numpy.typing as npt

PAGE = mmap.PAGESIZE
UNIT = 65536
"""Regions begin at multiples of this: the pages of a Mac are 16 KiB, of some Linux systems 64."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_longlong]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

PROT_NONE = 0
NORESERVE = 0x4000 if sys.platform == "linux" else 0x40


class Region:
    """`nbytes` of zeroed pages with an inaccessible page before them and at least one after them.

    Args:
        nbytes: size; a multiple of the page size.
        room: bytes that it may grow by, in place.
    """

    def __init__(self, nbytes: int, room: int = 0) -> None:
        self._reserved = nbytes + room + 2 * PAGE + UNIT
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
        start = _libc.mmap(None, self._reserved, PROT_NONE, flags, -1, 0)
        if start in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), "mmap failed")
        self._start: int | None = start
        self.address, self.nbytes, self._room = -(-(start + PAGE) // UNIT) * UNIT, 0, nbytes + room
        self.grow(nbytes)

    def grow(self, nbytes: int) -> None:
        """Make `nbytes` accessible in all."""
        assert nbytes <= self._room
        if _libc.mprotect(self.address, nbytes, mmap.PROT_READ | mmap.PROT_WRITE):
            raise OSError(ctypes.get_errno(), "mprotect failed")
        self.nbytes = nbytes

    @property
    def bytes(self) -> npt.NDArray[np.uint8]:
        """The accessible bytes; valid until `close`."""
        return np.ctypeslib.as_array((ctypes.c_uint8 * self.nbytes).from_address(self.address))

    def close(self) -> None:
        """Unmap it all."""
        start, self._start = self._start, None
        if start is not None:
            _libc.munmap(start, self._reserved)
