"""Where pages lie in an uncompressed file, so that they can be mapped.

A block is 2 MiB of a memory, from a multiple of 2 MiB, of which every page is stored. Blocks lie on multiples
of 2 MiB of the file too: an entry of the page tables maps as much at once, and a system that keeps a file in
pieces of this size needs one fault for a block, not 32 or 512.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

from nocopy.snapshot.format import BLOCK, CHUNK, HEADER, PAGE, PAGES_PER_CHUNK, Entries, Header
from nocopy.snapshot.scan import runs as stretches

FULL: Final = (1 << PAGES_PER_CHUNK) - 1
"""`pages` of a chunk that is stored whole."""


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
    """The chunks but the last that are the first half of a block: bool [chunks - 1]."""
    offset, memory, full = entries["offset"], entries["memory"], entries["pages"] == FULL
    found = full[:-1] & full[1:]
    found &= (offset[1:] - offset[:-1] == CHUNK) & (memory[1:] == memory[:-1])
    found &= offset[:-1] & np.uint64(BLOCK - 1) == 0
    return found


def gaps(header: Header, entries: Entries) -> list[tuple[int, int]]:
    """Padding before chunks, as (first byte, one past the last) of the file; the file is zero there."""
    position = entries["position"]
    ends = position + entries["stored"]
    before = np.concatenate(([np.uint64(header.data)], ends[:-1]))[: len(entries)]
    at = np.flatnonzero(before != position)
    found = list(zip(before[at].tolist(), position[at].tolist(), strict=True))
    return [(HEADER.size + header.manifest_nbytes, header.data), *found]


def page_runs(entries: Entries) -> tuple[Run, ...]:
    """The runs of one memory's chunks in an uncompressed file, in order; padding ends a run.

    The work is that of a few words for each chunk, and of each run, not of each page.
    """
    if not len(entries):
        return ()
    offset, position, full = entries["offset"], entries["position"], entries["pages"] == FULL
    joined = full[:-1] & full[1:]
    joined &= (offset[1:] - offset[:-1] == CHUNK) & (position[1:] - position[:-1] == CHUNK)
    firsts: list[int] = [0, *(np.flatnonzero(~joined) + 1).tolist(), len(entries)]
    heads = entries[firsts[:-1]]
    found: list[tuple[int, int, int]] = [(-1, -1, 0)]
    for start, at, pages, first, after in zip(
        heads["offset"].tolist(),
        heads["position"].tolist(),
        heads["pages"].tolist(),
        firsts[:-1],
        firsts[1:],
        strict=True,
    ):
        pieces = ((0, (after - first) * CHUNK),) if pages == FULL else segments(pages)
        for low, high in pieces:
            before, where, nbytes = found[-1]
            if before + nbytes == start + low and where + nbytes == at:
                found[-1] = before, where, nbytes + high - low
            else:
                found.append((start + low, at, high - low))
            at += high - low  # noqa: PLW2901 (the chunk's pages lie one after another)
    return tuple(Run(*run) for run in found[1:])


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


@cache
def segments(pages: int) -> tuple[tuple[int, int], ...]:
    """Runs of a chunk's stored pages, as (first byte, one past the last) within the chunk."""
    mask = np.array([pages >> i & 1 for i in range(PAGES_PER_CHUNK)], np.bool_)
    return tuple((first * PAGE, end * PAGE) for first, end in stretches(mask))
