"""Launches of a tape for other addresses than those that they were planned for.

To plan a pass takes as long as to play dozens of them. Sessions of one model play the same tapes and differ
in where their memory lies, so a tape's launches are kept, and moved for the next session. Which words of
their arguments are addresses nobody says: they are those that differ between two plannings of one tape, each
by as much as one of the addresses that the planning was given. What a tape itself says differs in none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
import numpy.typing as npt

from nocopy.device.cuda_launch import KernelLaunch, Shape
from nocopy.device.cuda_walk import WalkLaunch

ALIGNMENT = 256
"""What addresses must differ by a multiple of: launches are chosen by whether they are multiples of less."""

Words = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Moved:
    """A launch whose argument is complete."""

    shape: Shape
    grid: int
    shared: int
    raw: bytes

    def argument(self, workspace: int) -> bytes:
        """The argument, whatever the workspace is: its address is in there."""
        del workspace
        return self.raw


@dataclass
class Planned:
    """The launches of a tape for some addresses.

    Args:
        launches: what was planned.
        workspace: the address that their arguments were to be completed with.
        addresses: all that the planning was given, in an order that is always the same; what differs from one
            planning to the next without being one of them, such as the distance of two, is one of them too.
    """

    launches: Sequence[KernelLaunch]
    workspace: int
    addresses: tuple[int, ...]
    _places: dict[int, npt.NDArray[np.intp]] = field(default_factory=dict[int, "npt.NDArray[np.intp]"])
    """By the number of an address: the words that go with it."""

    def __post_init__(self) -> None:
        raw = [_raw(launch, self.workspace) for launch in self.launches]
        self._sizes = [len(each) for each in raw]
        self._words: Words = np.frombuffer(b"".join(raw), np.uint64)
        self._shapes = [(each.shape, each.grid, each.shared, _tail(each)) for each in self.launches]

    def moved(self, addresses: tuple[int, ...]) -> list[KernelLaunch] | None:
        """The launches for other addresses; None if it is not known what words go with them."""
        words = self._shifted(addresses)
        if words is None or any(i not in self._places for i in self._differences(addresses)):
            return None
        return list(self._launches(words.tobytes()))

    def learn(self, other: Planned) -> None:
        """Compare with a planning of the same tape for other addresses, of which not all were known."""
        unknown = {i: d for i, d in self._differences(other.addresses).items() if i not in self._places}
        words = self._shifted(other.addresses)
        alike = (self._shapes, self._sizes) == (other._shapes, other._sizes)
        if words is None or not alike or any(a == b for a, b in combinations(unknown.values(), 2)):
            return
        differences = other._words - words
        found = {i: np.flatnonzero(differences == np.uint64(d)) for i, d in unknown.items()}
        if sum(map(len, found.values())) == np.count_nonzero(differences):
            self._places |= found

    def _differences(self, addresses: tuple[int, ...]) -> dict[int, int]:
        """By how much addresses differ, of those that do."""
        pairs = enumerate(zip(self.addresses, addresses, strict=True))
        return {i: (b - a) % 2**64 for i, (a, b) in pairs if a != b}

    def _shifted(self, addresses: tuple[int, ...]) -> Words | None:
        """The words for other addresses, as far as is known which go with them."""
        differences = self._differences(addresses)
        if any(d % ALIGNMENT for d in differences.values()):
            return None
        words = self._words.copy()
        for i, d in differences.items():
            if i in self._places:
                words[self._places[i]] += np.uint64(d)
        return words

    def _launches(self, raw: bytes) -> Iterator[KernelLaunch]:
        at = 0
        for launch, size in zip(self.launches, self._sizes, strict=True):
            own, at = raw[at : at + size], at + size
            if isinstance(launch, WalkLaunch):
                yield replace(launch, stages=own)
            else:
                yield Moved(launch.shape, launch.grid, launch.shared, own)


def _raw(launch: KernelLaunch, workspace: int) -> bytes:
    """The bytes with addresses: of one kernel for a whole pass its stages, else the argument."""
    raw = launch.stages if isinstance(launch, WalkLaunch) else launch.argument(workspace)
    assert len(raw) % 8 == 0
    return raw


def _tail(launch: KernelLaunch) -> tuple[int, ...]:
    """What the kernel for a whole pass is told beside its stages."""
    return (launch.exchange, *launch.tail) if isinstance(launch, WalkLaunch) else ()
