"""The table of a snapshot file: chunks in order, inside their memories and the file, without overlap or hole.

All entries are checked at once, a column at a time.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from nocopy.errors import SnapshotFileError
from nocopy.snapshot.format import CHUNK, PAGE, PAGES_PER_CHUNK, Header
from nocopy.snapshot.manifest import Manifest

Entries = npt.NDArray[np.void]
"""`format.ENTRY` [chunks]."""
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
    ends = np.cumsum(stored)  # at most 2^32 for each entry of a file: no sum can wrap
    require(position == ends - stored + header.data, "does not follow the one before it in the file")
    end = header.data + (int(ends[-1]) if len(ends) else 0)
    if end != header.table:
        raise SnapshotFileError(
            path, "table", f"the chunks end at byte {end}, the table begins at {header.table}"
        )
