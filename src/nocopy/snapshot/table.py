"""The table of a snapshot file: chunks in order, inside their memories and the file, each in its place.

All entries are checked at once, a column at a time.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from nocopy.errors import SnapshotFileError
from nocopy.snapshot.format import CHUNK, PAGE, PAGES_PER_CHUNK, Entries, Header
from nocopy.snapshot.layout import positions
from nocopy.snapshot.manifest import Manifest

OFFSET_BITS: Final = np.uint64(48)
"""Offsets have fewer: no memory is larger than 2^48 bytes."""


def check_table(path: str, header: Header, manifest: Manifest, entries: Entries) -> None:
    """Refuse the first chunk that cannot be.

    Args:
        path: for messages.
        header: the file's, checked.
        manifest: says how large the memories are.
        entries: the table.

    Raises:
        SnapshotFileError: kind "table".
    """

    def require(fits: Any, message: str) -> None:
        if not fits.all():
            raise SnapshotFileError(path, "table", f"chunk {int(np.argmin(fits))} {message}")

    offset, position, memory = entries["offset"], entries["position"], entries["memory"].astype(np.uint64)
    pages, stored = entries["pages"], entries["stored"].astype(np.uint64)
    sizes = np.array([m.size for m in manifest.memories], np.uint64)
    require(entries["zero"] == 0, "has a byte that must be zero and is not")
    require(memory < len(sizes), f"names a memory; there are {len(sizes)}")
    require(offset % CHUNK == 0, f"starts at an offset that is no multiple of {CHUNK}")
    room = sizes[memory.astype(np.intp)]
    require(offset < room, "lies outside its memory")
    require((pages > 0) & (pages < 1 << PAGES_PER_CHUNK), "has no or unknown pages")
    left = np.minimum((room - offset) // PAGE, PAGES_PER_CHUNK)
    require(pages >> left == 0, "has a page outside its memory")
    place = (memory << OFFSET_BITS) + offset
    require(np.append(True, place[1:] > place[:-1]), "does not come after the one before it")
    full = np.bitwise_count(pages) * np.uint64(PAGE)
    fits = (stored > 0) & (stored <= full) if header.compressed else stored == full
    require(fits, "has a number of bytes that its pages cannot have")
    wanted, end = positions(entries, header.data, compressed=header.compressed)
    require(position == wanted, "does not follow the one before it in the file, or is no block in its place")
    if end != header.table:
        raise SnapshotFileError(
            path, "table", f"the chunks end at byte {end}, the table begins at {header.table}"
        )
