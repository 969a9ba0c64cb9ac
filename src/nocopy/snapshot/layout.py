"""Where pages lie in an uncompressed file, so that they can be mapped.

A block is 2 MiB of a memory, from a multiple of 2 MiB, of which every page is stored. Blocks lie on multiples
of 2 MiB of the file too: an entry of the page tables maps as much at once, and a system that keeps a file in
pieces of this size needs one fault for a block, not 32 or 512.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Final

import numpy as np

from nocopy.snapshot.format import BLOCK, CHUNK, HEADER, PAGE, PAGES_PER_CHUNK, Entries, Header
from nocopy.snapshot.scan import runs as runs_of

FULL: Final = (1 << PAGES_PER_CHUNK) - 1
"""`pages` of a chunk that is stored whole."""
WORD: Final = (1 << 32) - 1
WHOLE: Final = CHUNK | FULL << 32
"""Bytes 16 to 24 of the entry of such a chunk that is not compressed."""


Chunk = tuple[int, int, int]
"""Its memory, its offset there, and a bit for each page of it that is stored."""


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring pages: where they begin in the memory and in the file, and their bytes."""

    offset: int
    position: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """Entries of a table that follow one another in memory and file, all stored whole; or one that does not.

    `first` is the number of the first one, `entries` how many there are; the rest is the first one's, and
    `memory` has the bytes that must be zero in its upper half. Nothing is checked yet.
    """

    first: int
    entries: int
    offset: int
    position: int
    stored: int
    pages: int
    memory: int


def stretches(table: bytes) -> list[Stretch]:
    """A table in as few pieces as there are.

    Without NumPy, whose functions have to be fetched from memory first where a model has just passed through
    the caches: that takes longer than this loop for a table of a thousand entries.
    """
    words = memoryview(table).cast("Q")
    columns: list[list[int]] = [words[i::8].tolist() for i in range(4)]
    offset, position, size, memory = columns
    count = len(offset)
    cuts = [
        i
        for i in range(1, count)
        if size[i] != WHOLE
        or size[i - 1] != WHOLE
        or offset[i] - offset[i - 1] != CHUNK
        or position[i] - position[i - 1] != CHUNK
        or memory[i] != memory[i - 1]
    ]
    firsts = [0, *cuts, count] if count else []
    return [
        Stretch(i, after - i, offset[i], position[i], size[i] & WORD, size[i] >> 32, memory[i])
        for i, after in pairwise(firsts)
    ]


def positions(chunks: Sequence[Chunk], data: int) -> tuple[list[int], int]:
    """Where each chunk goes in an uncompressed file, and where the last one ends.

    Args:
        chunks: in order.
        data: where the first one goes, unless it begins a block.
    """
    found, end = list[int](), data
    for i, (memory, offset, pages) in enumerate(chunks):
        if offset % BLOCK == 0 and pages == FULL and (memory, offset + CHUNK, FULL) in chunks[i + 1 : i + 2]:
            end = up(end)
        found.append(end)
        end += pages.bit_count() * PAGE
    return found, end


def up(position: int) -> int:
    """The next place for a block."""
    return -(-position // BLOCK) * BLOCK


def gaps(header: Header, entries: Entries) -> list[tuple[int, int]]:
    """Padding before chunks, as (first byte, one past the last) of the file; the file is zero there."""
    position = entries["position"]
    ends = position + entries["stored"]
    before = np.concatenate(([np.uint64(header.data)], ends[:-1]))[: len(entries)]
    at = np.flatnonzero(before != position)
    found = list(zip(before[at].tolist(), position[at].tolist(), strict=True))
    return [(HEADER.size + header.manifest_nbytes, header.data), *found]


def page_runs(found: Iterable[Stretch]) -> tuple[Run, ...]:
    """The runs of one memory in an uncompressed file, in order; padding ends a run."""
    runs = [(-1, -1, 0)]
    for stretch in found:
        whole = stretch.pages == FULL
        at = stretch.position
        for low, high in ((0, stretch.entries * CHUNK),) if whole else segments(stretch.pages):
            offset, position, nbytes = runs[-1]
            if offset + nbytes == stretch.offset + low and position + nbytes == at:
                runs[-1] = offset, position, nbytes + high - low
            else:
                runs.append((stretch.offset + low, at, high - low))
            at += high - low
    return tuple(Run(*run) for run in runs[1:])


@cache
def segments(pages: int) -> tuple[tuple[int, int], ...]:
    """Runs of a chunk's stored pages, as (first byte, one past the last) within the chunk."""
    mask = np.array([pages >> i & 1 for i in range(PAGES_PER_CHUNK)], np.bool_)
    return tuple((first * PAGE, end * PAGE) for first, end in runs_of(mask))
