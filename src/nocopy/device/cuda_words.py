"""Words that many kernels of a program read from host pages, copied to device memory when the program begins.

Positions, token ids and rotary frequencies are a few bytes, but a kernel that reads them in host pages waits
for the bus, some microseconds each time. What a tape reads so and never writes is the same throughout a play,
so one launch at the start copies it, and the operands of all records name the copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nocopy.memory.dtype import DType
from nocopy.tape.builder import TapeBuilder
from nocopy.tape.record import RECORD, RECORD_BYTES, Space, Tensor
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
GAP = 16384
"""Bytes between two ranges that are copied along rather than start another launch."""
FEWEST = 16
"""Records from which on a copy pays."""

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

    def copies(self, base: int, copy: int) -> list[bytes]:
        """Records that make the copy at address `copy`, for a guest space at address `base`."""
        records: list[bytes] = []
        for start, stop in self.ranges:
            tape, to = TapeBuilder(), (copy + (self.place(start) or 0) - base) % 2**64
            count = ((stop - start) // 4,)
            tape.copy(Tensor(Space.GUEST, to, count, DType.I32), Tensor(Space.GUEST, start, count, DType.I32))
            records.append(bytes(tape))
        return records


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
