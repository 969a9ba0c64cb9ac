"""Pages that a device imports piece by piece: only what programs need, and that only once they need it.

A thawed guest's pages are a file's until it writes them, and shared with its clones. Importing all of them
into a device that pins pages would copy all of them; so such a device imports the ranges that its programs
touch, each as one import, since an operand needs addresses that follow each other.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from nocopy.device.chunks import Chunk, ChunkedPages, Maker
from nocopy.device.protocol import Mode, OnDemand, check_range
from nocopy.errors import ClosedError, DeviceError
from nocopy.memory.ledger import Ledger
from nocopy.tape.record import Space
from nocopy.tape.validate import Tape

BLOCK: Final = 65536
"""Bytes: imports begin and end at multiples of this, one page of WebAssembly."""


def touched(tape: Tape, space: Space) -> list[tuple[int, int]]:
    """The ranges [start, stop) of a space that a tape reads or writes."""
    return [(e.start, e.stop) for some in tape.extents for e in some if e.space == space and e.start < e.stop]


def blocks(ranges: Iterable[tuple[int, int]], nbytes: int) -> list[tuple[int, int]]:
    """The same bytes and some around them: whole blocks, in order, none touching the next."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        low, high = start // BLOCK * BLOCK, min(-(-stop // BLOCK) * BLOCK, nbytes)
        if joined and low <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], high)
        else:
            joined.append((low, high))
    return joined


class Import(NamedTuple):
    """Bytes [start, stop) of the pages, as a device has them."""

    start: int
    stop: int
    chunk: Chunk


@dataclass(eq=False)
class Imports:
    """What has been imported of some pages.

    Args:
        maker: imports.
        address: of the first byte.
        on_demand: who must know.
        ledger: counts the bytes as shared.
    """

    maker: Maker
    address: int
    on_demand: OnDemand
    ledger: Ledger | None
    made: list[Import] = field(default_factory=list[Import], init=False)

    def reach(self, ranges: Iterable[tuple[int, int]], nbytes: int) -> bool:
        """Import what is missing of these ranges; return whether something that was there had to move.

        Raises:
            DeviceError: the driver refuses, or a range is larger than one import can be.
        """
        moved = False
        for low, high in blocks(ranges, nbytes):
            if self.find(low, high) is None:
                moved |= self._add(low, high)
        return moved

    def _add(self, low: int, high: int) -> bool:
        hidden = [each for each in self.made if each.start < high and low < each.stop]
        low, high = min([low, *(e.start for e in hidden)]), max([high, *(e.stop for e in hidden)])
        if high - low > self.maker.limit:
            raise DeviceError(
                f"operands over bytes {low} to {high} were asked for; {self.maker.product} reaches at most"
                f" {self.maker.limit} bytes at once; use smaller tensors"
            )
        for each in hidden:  # a driver may refuse to import pages twice
            self.made.remove(each)
            self.maker.destroy(each.chunk)
        self.on_demand.own(low, high)
        insort(self.made, Import(low, high, self.maker.make(self.address + low, high - low)), key=_start)
        if self.ledger:
            self.ledger.shared += high - low - sum(e.stop - e.start for e in hidden)
        return bool(hidden)

    def find(self, start: int, stop: int) -> Import | None:
        """The import that these bytes lie in."""
        return next((each for each in self.made if each.start <= start and stop <= each.stop), None)

    def close(self) -> None:
        """Let go of everything."""
        while self.made:
            self.maker.destroy(self.made.pop().chunk)


def _start(each: Import) -> int:
    return each.start


@dataclass(eq=False)
class RangedPages(ChunkedPages):
    """Host pages of which only what programs need is imported. See `Pages` and `OnDemand`."""

    on_demand: OnDemand = field(kw_only=True)
    imports: Imports = field(init=False)

    def __post_init__(self) -> None:
        self.imports = Imports(self.maker, self.address, self.on_demand, self.ledger)

    @property
    def device_address(self) -> int:
        """Address of the first byte as kernels see it; 0 if it has none of its own."""
        if self.mode is Mode.SAME_POINTER:
            return self.address
        first = self.imports.find(0, 1)
        return first.chunk.device_address if first else 0

    def reach(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Import what is missing of these ranges. Errors as in `Imports.reach`."""
        if self.closed:
            raise ClosedError("compiling a tape was asked for; its pages are closed")
        if self.imports.reach(ranges, self.nbytes):
            self.generation += 1
            self.on_demand.moved()

    def resolve(self, start: int, stop: int) -> int:
        """See `ChunkedPages.resolve`; `reach` comes first."""
        found = self.imports.find(start, stop)
        if found is None:
            raise AssertionError(f"bytes {start} to {stop} are used before they were imported")
        return found.chunk.device_address + start - found.start

    def buffers(self) -> list[Chunk]:
        """Every buffer over these pages."""
        return [each.chunk for each in self.imports.made]

    def grow(self, nbytes: int) -> None:
        """See `Pages.grow`: nothing is imported before it is needed."""
        if self.closed:
            raise ClosedError("growing was asked for; these pages are closed")
        check_range(self.address, nbytes, self.maker.alignment)
        self.nbytes = nbytes

    def close(self) -> None:
        """See `Pages.close`."""
        if not self.closed:
            self.closed = True
            self.forget(self)
            self.imports.close()
