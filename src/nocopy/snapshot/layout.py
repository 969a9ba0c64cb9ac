"""Where pages lie in an uncompressed file, so that they can be mapped.

A block is 2 MiB of a memory, from a multiple of 2 MiB, of which every page is stored. Blocks lie on multiples
of 2 MiB of the file too: an entry of the page tables maps as much at once, and a system that keeps a file in
pieces of this size needs one fault for a block, not 32 or 512.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from nocopy.snapshot.format import BLOCK, CHUNK, PAGE, PAGES_PER_CHUNK, Entries
from nocopy.snapshot.scan import runs as stretches

FULL: Final = (1 << PAGES_PER_CHUNK) - 1
"""`pages` of a chunk that is stored whole."""
ONE: Final = np.uint32(1)
BITS: Final = np.arange(PAGES_PER_CHUNK, dtype=np.uint32)


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring pages: where they begin in the memory and in the file, and their bytes."""

    offset: int
    position: int
    nbytes: int


def positions(entries: Entries, data: int, *, compressed: bool) -> tuple[npt.NDArray[np.uint64], int]:
    """Where each chunk lies in the file, and where the last one ends.

    Args:
        entries: sound but for their positions, which are not looked at.
        data: where chunks begin.
        compressed: nothing is mapped then: there are no blocks.

    Returns:
        u64 [chunks], and bytes.
    """
    stored = entries["stored"]
    ends = np.cumsum(stored, dtype=np.uint64) + np.uint64(data)
    found = ends - stored
    if not compressed:
        blocks = np.flatnonzero(_begins_block(entries))
        if len(blocks):
            # A block changes nothing about where in 2 MiB the file goes on: only what lies between two does.
            off = -found[blocks].astype(np.int64) % BLOCK
            padding = np.zeros_like(found)
            padding[blocks] = np.diff(off, prepend=0) % BLOCK
            shift = np.cumsum(padding)
            found, ends = found + shift, ends + shift
    return found, int(ends[-1]) if len(ends) else data


def _begins_block(entries: Entries) -> npt.NDArray[np.bool_]:
    """The chunks that are the first half of a block: bool [chunks]."""
    offset, memory, full = entries["offset"], entries["memory"], entries["pages"] == FULL
    found = full & (offset % BLOCK == 0)
    found[:-1] &= full[1:] & (offset[1:] == offset[:-1] + np.uint64(CHUNK)) & (memory[1:] == memory[:-1])
    found[-1:] = False
    return found


def gaps(entries: Entries, data: int) -> list[tuple[int, int]]:
    """Padding before blocks, as (first byte, one past the last) of the file; the file is zero there."""
    position = entries["position"]
    ends = position + entries["stored"]
    before = np.concatenate(([np.uint64(data)], ends[:-1]))
    at = np.flatnonzero(before != position)
    return list(zip(before[at].tolist(), position[at].tolist(), strict=True))


def page_runs(entries: Entries) -> tuple[Run, ...]:
    """The runs of one memory's chunks in an uncompressed file, in order; padding ends a run.

    The work is that of a few words for each chunk, and of each run, not of each page.
    """
    if not len(entries):
        return ()
    chunk, bits, position = entries["offset"] // CHUNK, entries["pages"], entries["position"]
    neighbour = (np.diff(chunk) == 1) & (np.diff(position) == entries["stored"][:-1])
    before, after = np.zeros_like(bits), np.zeros_like(bits)
    before[1:] = neighbour & (bits[:-1] >> (PAGES_PER_CHUNK - 1))  # the page before the first is stored
    after[:-1] = (neighbour & bits[1:] & 1) << (PAGES_PER_CHUNK - 1)  # and the page after the last
    row, bit = _set(bits & ~(bits << ONE | before))
    at = position[row] + np.bitwise_count(bits[row] & (ONE << bit) - ONE) * np.uint64(PAGE)
    starts = (chunk[row] * PAGES_PER_CHUNK + bit).tolist()
    row, bit = _set(bits & ~(bits >> ONE | after))
    ends = (chunk[row] * PAGES_PER_CHUNK + bit + 1).tolist()
    return tuple(
        Run(start * PAGE, where, (end - start) * PAGE)
        for start, end, where in zip(starts, ends, at.tolist(), strict=True)
    )


def cut(runs: Sequence[Run], at: int) -> tuple[list[Run], list[Run]]:
    """The runs, or pieces of them, that lie before byte `at` of the memory, and those after it."""
    before = [run for run in runs if run.offset + run.nbytes <= at]
    after = list(runs[len(before) :])
    if after and after[0].offset < at:
        run = after[0]
        size = at - run.offset
        before.append(Run(run.offset, run.position, size))
        after[0] = Run(at, run.position + size, run.nbytes - size)
    return before, after


def _set(bits: npt.NDArray[Any]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.uint32]]:
    """Row and number of each bit that is set, in order."""
    kept = np.flatnonzero(bits)
    row, bit = np.nonzero(bits[kept, None] >> BITS & 1)
    return kept[row], bit.astype(np.uint32)


@cache
def segments(pages: int) -> tuple[tuple[int, int], ...]:
    """Runs of a chunk's stored pages, as (first byte, one past the last) within the chunk."""
    mask = np.array([pages >> i & 1 for i in range(PAGES_PER_CHUNK)], np.bool_)
    return tuple((first * PAGE, end * PAGE) for first, end in stretches(mask))
