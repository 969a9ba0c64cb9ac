"""The table of a snapshot file: chunks in order, inside their memories and the file, each in its place.

All entries are checked at once, a column at a time.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from nocopy.errors import SnapshotFileError
from nocopy.snapshot.format import CHUNK, PAGE, PAGES_PER_CHUNK, Entries, Header
from nocopy.snapshot.layout import positions
from nocopy.snapshot.manifest import Manifest

PAGE_BITS: Final = np.uint64(16)
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
    offset, memory = entries["offset"], entries["memory"].astype(np.uint64)
    pages, stored = entries["pages"].astype(np.uint64), entries["stored"]
    sizes = np.array([m.size for m in manifest.memories] or [0], np.uint64)
    room = sizes[np.minimum(memory, len(sizes) - 1).astype(np.intp)]
    place = (memory << OFFSET_BITS) + offset
    left = np.minimum(room - offset >> PAGE_BITS, PAGES_PER_CHUNK)
    full = np.bitwise_count(pages) * np.uint64(PAGE)
    wanted, end = positions(entries, header.data, compressed=header.compressed)
    rising = np.ones(len(entries), np.bool_)
    np.greater(place[1:], place[:-1], out=rising[1:])
    # Sums and shifts of what was not checked wrap; the first rule that is broken is named, in this order.
    rules = (
        (entries["zero"] == 0, "has a byte that must be zero and is not"),
        (memory < len(manifest.memories), f"names a memory; there are {len(manifest.memories)}"),
        (offset & np.uint64(CHUNK - 1) == 0, f"starts at an offset that is no multiple of {CHUNK}"),
        (offset < room, "lies outside its memory"),
        ((pages > 0) & (pages < 1 << PAGES_PER_CHUNK), "has no or unknown pages"),
        (pages >> left == 0, "has a page outside its memory"),
        (rising, "does not come after the one before it"),
        (
            (stored > 0) & (stored <= full) if header.compressed else stored == full,
            "has a number of bytes that its pages cannot have",
        ),
        (
            entries["position"] == wanted,
            "does not follow the one before it in the file, or is no block in its place",
        ),
    )
    for fits, message in rules:
        if not np.logical_and.reduce(fits):
            raise SnapshotFileError(path, "table", f"chunk {int(np.argmin(fits))} {message}")
    if end != header.table:
        raise SnapshotFileError(
            path, "table", f"the chunks end at byte {end}, the table begins at {header.table}"
        )
