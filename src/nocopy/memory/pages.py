"""Address ranges from the operating system: reserve with mmap, commit with mprotect, release once nobody
refers to them.

A reservation costs address space only. Committed pages read as zero and become resident when they are
first written.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref
from typing import Final

from nocopy.errors import MemoryLimitError

PAGE: Final = mmap.PAGESIZE
"""The host's page size in bytes: 4 KiB on x86-64, 16 KiB on Apple silicon, 4 to 64 KiB on other ARM."""

LARGE: Final = 2 << 20
"""Bytes that one entry of the page tables maps instead of a page's: 2 MiB on x86-64, and on ARM with pages of
4 KiB. A range begins on a multiple of it, so that the system can map files and memory so."""

PROT_NONE: Final = 0
PROT_READ_WRITE: Final = mmap.PROT_READ | mmap.PROT_WRITE
# A reservation must not count against the commit limit: 4 GiB for every guest would exhaust it at once.
MAP_NORESERVE: Final = 0x40 if sys.platform == "darwin" else 0x4000  # Python names it since 3.13 only
MAP_FIXED: Final = 0x10  # on Linux and macOS alike; Python does not name it
MAP_FLAGS: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
MADV_HUGEPAGE: Final = 14
MAP_FAILED: Final = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_longlong,  # off_t is 64 bits wide on every platform that Wasmtime has a wheel for
]
_mprotect = _libc.mprotect
_mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_madvise = _libc.madvise
_madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_munmap = _libc.munmap
_munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def round_up(size: int, to: int = PAGE) -> int:
    """Round `size` bytes up to a multiple of `to` bytes."""
    return -(-size // to) * to


class State(ctypes.Structure):
    """What native code reads fresh on every call: the size in bytes and the number of growths so far."""

    _fields_ = [("size", ctypes.c_size_t), ("generation", ctypes.c_size_t)]
    size: int
    generation: int


class Pages:
    """A reserved address range, unmapped when the last reference to this object goes away.

    Whoever hands out a pointer into the range (an array, a capsule, a device import) keeps a reference:
    this is what makes a dangling pointer impossible, whatever the order in which things are closed.
    """

    def __init__(self, reserve: int, guard: int, committed: int = 0) -> None:
        self.reserve = round_up(reserve)
        self.state = State()
        length = max(self.reserve + round_up(guard), PAGE)
        slack = LARGE - PAGE if length >= LARGE else 0
        all_of_it = committed >= length
        protection = PROT_READ_WRITE if all_of_it else PROT_NONE
        address = _mmap(None, length + slack, protection, MAP_FLAGS, -1, 0)
        if address is None or address == MAP_FAILED:
            reason = os.strerror(ctypes.get_errno())
            raise MemoryLimitError(
                f"{length} bytes of address space were asked for (reservation plus guard); the system says: "
                f"{reason}. Ask for a smaller `reserve`, or raise the limit (`ulimit -v unlimited`)."
            )
        self.address: int = round_up(address, slack + PAGE)
        # At exit the system takes the range back; unmapping it earlier could pull it from under a device
        # or a guest.
        weakref.finalize(self, _munmap, address, length + slack).atexit = False
        if not all_of_it:
            self.commit(0, committed)

    def commit(self, old: int, new: int) -> None:
        """Make the bytes from `old` to `new` readable and writable; whole pages.

        Raises:
            MemoryLimitError: the system refuses; nothing has changed.
        """
        self._protect(round_up(old), round_up(new), PROT_READ_WRITE, "commit")

    def decommit(self, old: int, new: int) -> None:
        """Undo a commit that nobody has written to: the pages become inaccessible again and stay zero."""
        self._protect(round_up(old), round_up(new), PROT_NONE, "give back")

    def refresh(self, start: int, end: int) -> None:
        """Give the committed bytes from `start` to `end` new pages, which read as zero; whole pages.

        What was there is gone. No device may hold them: it would keep the old pages.

        Raises:
            MemoryLimitError: the system refuses.
        """
        size = round_up(end) - start
        if not size:
            return
        found = _mmap(self.address + start, size, PROT_READ_WRITE, MAP_FLAGS | MAP_FIXED, -1, 0)
        if found is None or found == MAP_FAILED:
            reason = os.strerror(ctypes.get_errno())
            raise MemoryLimitError(f"{size} bytes were to be made zero; the system says: {reason}")

    def prefer_large(self, start: int = 0, end: int | None = None) -> bool:
        """Ask the system to use large pages for what is written from now on; whether it will try.

        A hint: where it is not taken, everything works as before. Pages of 2 MiB instead of 4 KiB make passes
        over tensors of many MiB up to a third faster on a virtual machine.

        Args:
            start: the first byte that it is about; a multiple of `PAGE`.
            end: one past the last; None means all.
        """
        if sys.platform != "linux":
            return False
        end = self.reserve if end is None else end
        return _madvise(self.address + start, end - start, MADV_HUGEPAGE) == 0

    def _protect(self, start: int, end: int, protection: int, verb: str) -> None:
        if start == end:
            return
        if _mprotect(self.address + start, end - start, protection) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise MemoryLimitError(
                f"{end - start} bytes were to be made accessible or inaccessible ({verb}); the system says: "
                f"{reason}. Free memory, or ask for less."
            )


def map_file(file: int, position: int, address: int, size: int) -> None:
    """Replace committed pages by a file's bytes, copy-on-write: what is written there stays here.

    Pages are read from the file when they are first touched; if the system can, in large pieces where the
    multiples of `LARGE` in the file meet those in memory. The file may be closed afterwards.

    Args:
        file: descriptor, readable.
        position: first byte of the file, a multiple of `PAGE`.
        address: first byte of the pages, a multiple of `PAGE`; no device holds them.
        size: bytes, a multiple of `PAGE`, all inside the file.

    Raises:
        MemoryLimitError: the system refuses.
    """
    flags = mmap.MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE
    found = _mmap(address, size, PROT_READ_WRITE, flags, file, position)
    if found is None or found == MAP_FAILED:
        reason = os.strerror(ctypes.get_errno())
        raise MemoryLimitError(
            f"{size} bytes of a file were to be mapped at {address:#x}; the system says: {reason}. "
            "Free memory, or close other guests."
        )
    if size >= LARGE and (address - position) % LARGE == 0 and sys.platform == "linux":
        # A hint: without it, pages that are not in memory yet are read in pieces too small to map at once.
        _madvise(address, size, MADV_HUGEPAGE)
