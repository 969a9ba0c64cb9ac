"""The table of a snapshot file: chunks in order, inside their memories and the file, each in its place."""

from __future__ import annotations

from collections.abc import Sequence

from nocopy.errors import SnapshotFileError
from nocopy.snapshot.format import BLOCK, CHUNK, PAGE, Header
from nocopy.snapshot.layout import FULL, WORD, Stretch, up
from nocopy.snapshot.manifest import Manifest


def check_table(path: str, header: Header, manifest: Manifest, found: Sequence[Stretch]) -> None:
    """Refuse the first chunk that cannot be.

    Args:
        path: for messages.
        header: the file's, checked.
        manifest: says how large the memories are.
        found: the table.

    Raises:
        SnapshotFileError: kind "table".
    """
    sizes = [memory.size for memory in manifest.memories]
    last, end = (-1, 0), header.data
    for stretch in found:
        final = stretch.offset + (stretch.entries - 1) * CHUNK
        wrong = _wrong(stretch, final, sizes, last, compressed=header.compressed)
        # Where the first block of the stretch begins, if it has one: at its first or second chunk.
        skip = 0 if stretch.offset % BLOCK == 0 else CHUNK
        block = stretch.pages == FULL and final >= stretch.offset + skip + CHUNK and not header.compressed
        if block and not skip:
            end = up(end)
        if not wrong and (stretch.position != end or (block and (end + skip) % BLOCK)):
            wrong = "does not follow the one before it in the file, or is no block in its place"
        if wrong:
            raise SnapshotFileError(path, "table", f"chunk {stretch.first} {wrong}")
        last, end = (stretch.memory, final), end + stretch.stored + final - stretch.offset
    if end != header.table:
        raise SnapshotFileError(
            path, "table", f"the chunks end at byte {end}, the table begins at {header.table}"
        )


def _wrong(
    stretch: Stretch, final: int, sizes: Sequence[int], last: tuple[int, int], *, compressed: bool
) -> str:
    """What cannot be about a stretch, whatever its place in the file; "" if nothing.

    Args:
        stretch: some entries.
        final: the offset of the last one.
        sizes: of the memories, in bytes.
        last: memory and offset of the entry before.
        compressed: whether chunks may have fewer bytes than their pages.
    """
    memory, pages, stored = stretch.memory, stretch.pages, stretch.stored
    full = pages.bit_count() * PAGE
    wrong = ""
    if memory > WORD:
        wrong = "has a byte that must be zero and is not"
    elif memory >= len(sizes):
        wrong = f"names a memory; there are {len(sizes)}"
    elif stretch.offset % CHUNK:
        wrong = f"starts at an offset that is no multiple of {CHUNK}"
    elif final >= sizes[memory]:
        wrong = "lies outside its memory"
    elif not 0 < pages <= FULL:
        wrong = "has no or unknown pages"
    elif final + pages.bit_length() * PAGE > sizes[memory]:
        wrong = "has a page outside its memory"
    elif (memory, stretch.offset) <= last:
        wrong = "does not come after the one before it"
    elif not 0 < stored <= full or (stored < full and not compressed):
        wrong = "has a number of bytes that its pages cannot have"
    return wrong
