"""Words that many kernels of a program read from host pages, copied to device memory when the program begins.

Positions, token ids and rotary frequencies are a few bytes, but a kernel that reads them in host pages waits
for the bus, some microseconds each time. What a tape reads so and never writes is the same throughout a play,
so one launch at the start copies it, and the operands of all records name the copy.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, chain

from nocopy.device.cuda_launch import Shape
from nocopy.tape.record import RECORD, RECORD_BYTES, Space
from nocopy.tape.validate import Tape

WORDS = {
    "rope": (2, 3),
    "scatter": (2,),
    "attention": (4,),
    "gather": (2,),
    "penalize": (3,),
    "sample": (2, 3),
}
"""Operands that are small and read early: positions, frequencies, indices, how to draw."""
LARGEST = 8192
"""Bytes of an operand that is worth it."""
GAP = 256
"""Bytes between two ranges that are copied along rather than make two of them."""
FEWEST = 16
"""Records from which on a copy pays."""

RANGES, THREADS = 12, 256
"""Of a launch: ranges at most, and threads of a block."""
WORDS_COPIED = struct.Struct(f"<Q2I{2 * RANGES}Q")
"""`nocopy_words` in kernels/cuda/copy_words.cu."""

Range = tuple[int, int]


@dataclass(frozen=True)
class Words:
    """Ranges [start, stop) of the guest space, and the byte of the copy at which each begins."""

    ranges: tuple[Range, ...]

    @property
    def nbytes(self) -> int:
        """Size of the copy."""
        return sum(stop - start for start, stop in self.ranges)

    def place(self, offset: int) -> int | None:
        """Where byte `offset` of the guest space lies in the copy; None if it is not there."""
        at = 0
        for start, stop in self.ranges:
            if start <= offset < stop:
                return at + offset - start
            at += stop - start
        return None

    def launches(self, base: int, copy: int) -> list[WordsLaunch]:
        """What makes the copy at address `copy`, for a guest space at address `base`."""
        parts = [self.ranges[i : i + RANGES] for i in range(0, len(self.ranges), RANGES)]
        return [WordsLaunch(part, base, copy + (self.place(part[0][0]) or 0)) for part in parts]


@dataclass(frozen=True)
class WordsLaunch:
    """A launch of kernels/cuda/copy_words.cu: ranges of the guest space at `base`, copied to address `to`."""

    ranges: tuple[Range, ...]
    base: int
    to: int
    shared: int = 0

    @property
    def shape(self) -> Shape:
        """A thread for each word."""
        return Shape("copy_words", "copy_words", self.grid, (THREADS, 1))

    @property
    def grid(self) -> int:
        """Blocks."""
        return -(-sum(stop - start for start, stop in self.ranges) // (4 * THREADS))

    def argument(self, workspace: int) -> bytes:
        """`nocopy_words`."""
        del workspace
        ends = list(accumulate((stop - start) // 4 for start, stop in self.ranges))
        pairs = [(self.base + start, end) for (start, _), end in zip(self.ranges, ends, strict=True)]
        pairs += [(0, 0)] * (RANGES - len(pairs))
        return WORDS_COPIED.pack(self.to, ends[-1], 0, *chain.from_iterable(pairs))


def find_words(tape: Tape) -> Words:
    """What a tape reads again and again of the guest space and does not write."""
    written = [e for es in tape.extents for e in es if e.written and e.space == Space.GUEST]
    found: list[Range] = []
    for op, extents in zip(tape.ops(), tape.extents, strict=True):
        for slot in WORDS.get(op.name, ()):
            e = extents[slot]
            small = 0 < e.stop - e.start <= LARGEST and e.space == Space.GUEST
            if small and not any(w.start < e.stop and e.start < w.stop for w in written):
                found.append((e.start, e.stop))
    if len(found) < FEWEST:
        return Words(())
    wanted = sorted(set(found))
    ranges = [wanted[0]]
    for start, stop in wanted[1:]:
        if start < ranges[-1][1] + GAP:
            ranges[-1] = ranges[-1][0], max(ranges[-1][1], stop)
        else:
            ranges.append((start, stop))
    return Words(tuple(ranges))


def redirected(tape: Tape, words: Words, bases: Mapping[Space, int], copy: int) -> list[bytes]:
    """The records of a tape, those operands that have a copy at address `copy` with offsets that name it."""
    records = tape.records.copy()
    written = [e for es in tape.extents for e in es if e.written and e.space == Space.GUEST]
    for record, op, extents in zip(records, tape.ops(), tape.extents, strict=True):
        for slot in WORDS.get(op.name, ()) if words.ranges else ():
            e = extents[slot]
            if e.space != Space.GUEST or any(w.start < e.stop and e.start < w.stop for w in written):
                continue
            place, end = words.place(e.start), words.place(e.stop - 1)
            if place is not None and end == place + e.stop - 1 - e.start:
                record["operands"]["offset"][slot] = (copy + place - bases[Space.GUEST]) % 2**64
    raw = records.astype(RECORD).tobytes()
    return [raw[at : at + RECORD_BYTES] for at in range(0, len(raw), RECORD_BYTES)]
