"""A tape's records as launches are made of them: unpacked once, found by their op, and what they touch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from nocopy.device.cuda_launch import Fields
from nocopy.tape.record import Space
from nocopy.tape.validate import Tape


@dataclass(frozen=True)
class Touched:
    """Addresses [start, stop) that an operand touches; `table`: bytes of a row, and from one to the next."""

    range: tuple[int, int]
    written: bool
    table: tuple[int, int] | None


class Records:
    """The records of one tape.

    Args:
        tape: what is to be played.
        raw: its records, whose offsets may name copies of what the tape does not write (cuda_words).
        addresses: the device address of each space; no two share bytes.
    """

    def __init__(self, tape: Tape, raw: list[bytes], addresses: Mapping[Space, int]) -> None:
        self.tape, self.raw, self.addresses = tape, raw, addresses
        self._fields: dict[int, Fields] = {}

    @cached_property
    def weights_stay(self) -> bool:
        """True if no record writes to the weights."""
        written = (e.space for extents in self.tape.extents for e in extents if e.written)
        return Space.WEIGHTS not in written

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, index: int) -> Fields:
        """A record's fields, which are not to be changed."""
        if index not in self._fields:
            self._fields[index] = Fields.unpack(self.raw[index])
        return self._fields[index]

    def find(self, index: int, op: str) -> Fields | None:
        """The fields of a record, if there is one, of this op, that does anything."""
        found = self[index] if index < len(self) else None
        return found if found and found.op.name == op and not found.empty() else None

    def touched(self, index: int) -> list[Touched]:
        """What a record's operands touch; of a KV cache, which a scatter writes, also how its rows lie."""
        scatter, found = self.find(index, "scatter"), list[Touched]()
        for e in self.tape.extents[index]:
            base, rows = self.addresses[e.space], None
            if e.written and scatter:
                size = scatter.dtype(0).itemsize
                rows = scatter.named["w"] * size, scatter.strides[0][0] * size
            if e.stop > e.start:
                found.append(Touched((base + e.start, base + e.stop), e.written, rows))
        return found


def overlap(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """True if two ranges [start, stop) share a byte."""
    return a[0] < b[1] and b[0] < a[1]


def interleaved(a: Touched, b: Touched) -> bool:
    """True if two tables share no byte though each lies between the rows of the other."""
    if not (a.table and b.table) or a.table[1] != b.table[1]:
        return False
    (low, width), (high, other) = sorted([(a.range[0], a.table[0]), (b.range[0], b.table[0])])
    apart = (high - low) % a.table[1]
    return apart >= width and apart + other <= a.table[1]
