"""Which parts of a range of this process are private mappings without a file, so that what was never touched
there reads as zero.

Linux since 6.11 answers for one address at a time (PROCMAP_QUERY); before, it prints all of the process's.
"""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Iterator
from struct import Struct
from typing import Final

MAPS: Final = "/proc/self/maps"
QUERY: Final = Struct("<9Q4I2Q")
"""`struct procmap_query`: its size, flags, the address that is asked about; start, end and flags of the
mapping, its page size, its offset in a file, the inode; the device (two words); names, unused (four)."""
PROCMAP_QUERY: Final = 3 << 30 | QUERY.size << 16 | ord("f") << 8 | 17
"""_IOWR('f', 17, struct procmap_query)"""
THIS_OR_NEXT: Final = 0x10
SHARED: Final = 0x08

Mapping = tuple[int, int, bool]
"""First byte, one past the last, and whether it is private and without a file."""


def anonymous_ranges(start: int, end: int) -> list[tuple[int, int]]:
    """The private mappings without a file that lie within [start, end), clipped to it.

    Raises:
        OSError: the system does not say.
    """
    with open(MAPS, "rb") as file:
        try:
            found = list(_asked(file.fileno(), start, end))
        except OSError as error:
            if error.errno not in (errno.ENOTTY, errno.EINVAL):
                raise
            found = list(_printed(file))
    return [
        (max(low, start), min(high, end)) for low, high, bare in found if bare and start < high and low < end
    ]


def _asked(file: int, at: int, end: int) -> Iterator[Mapping]:
    while at < end:
        query = bytearray(QUERY.pack(QUERY.size, THIS_OR_NEXT, at, *[0] * 12))
        try:
            fcntl.ioctl(file, PROCMAP_QUERY, query)
        except FileNotFoundError:  # nothing is mapped from there on
            return
        _, _, _, low, at, flags, _, _, inode, major, minor, *_ = QUERY.unpack(query)
        yield low, at, not flags & SHARED and not (inode or major or minor)


def _printed(lines: Iterator[bytes]) -> Iterator[Mapping]:
    for line in lines:
        # start-end rwxp offset device inode [name]
        ends, protection, _, device, inode, *name = line.split(None, 5)
        low, high = (int(n, 16) for n in ends.split(b"-"))
        bare = protection.endswith(b"p") and (device, inode) == (b"00:00", b"0")
        yield low, high, bare and (not name or name[0].startswith(b"[anon:"))
