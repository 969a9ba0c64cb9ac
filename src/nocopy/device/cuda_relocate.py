"""Launches of a tape for other addresses than those that they were planned for.

To plan a pass takes as long as to play dozens of them. Sessions of one model play the same tapes and differ
in where their memory lies, so a tape's launches are kept, and moved for the next session. Which words of
their arguments are addresses nobody says: they are those that differ between two plannings of one tape, each
by as much as one of the addresses that the planning was given. What a tape itself says differs in none.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from nocopy.device.cuda_blas import BlasLaunch
from nocopy.device.cuda_launch import AnyLaunch, Branch, Shape
from nocopy.device.cuda_walk import WalkLaunch

ALIGNMENT = 256
"""What addresses must differ by a multiple of: launches are chosen by whether they are multiples of less."""

_PLACES = struct.Struct("<4Q")
"""Addresses of a product that the library takes: of its operands, and of its working memory."""

Words: TypeAlias = npt.NDArray[np.uint64]
Places: TypeAlias = tuple[frozenset[int], npt.NDArray[np.intp]]
"""Words of the arguments, and the numbers of addresses that they may go with: where those of two plannings
differ by as much they are not told apart, so such launches can be moved only where they do so again."""


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

    launches: Sequence[AnyLaunch]
    workspace: int
    addresses: tuple[int, ...]
    _places: list[Places] = field(default_factory=list["Places"])

    def __post_init__(self) -> None:
        raw = [_raw(launch, self.workspace) for launch in self.launches]
        self._sizes = [len(each) for each in raw]
        self._words: Words = np.frombuffer(b"".join(raw), np.uint64)
        self._shapes = [_shape(each) for each in self.launches]

    def moved(self, addresses: tuple[int, ...]) -> list[AnyLaunch] | None:
        """The launches for other addresses; None if it is not known what words go with them."""
        differences = self._differences(addresses)
        known = {i for numbers, _ in self._places for i in numbers}
        if not differences.keys() <= known:
            return None
        words = self._words.copy()
        for numbers, places in self._places:
            steps = {differences.get(i, 0) for i in numbers}
            if len(steps) > 1 or any(step % ALIGNMENT for step in steps):
                return None
            words[places] += np.uint64(steps.pop())
        return list(self._launches(words.tobytes()))

    def learn(self, other: Planned) -> None:
        """Compare with a planning of the same tape for other addresses, of which not all were known."""
        if (self._shapes, self._sizes) != (other._shapes, other._sizes):
            return
        differences, words = self._differences(other.addresses), other._words - self._words
        found: list[Places] = []
        for step in set(differences.values()):
            numbers = frozenset(i for i, difference in differences.items() if difference == step)
            found.append((numbers, np.flatnonzero(words == np.uint64(step))))
        aligned = not any(step % ALIGNMENT for step in differences.values())
        if aligned and sum(len(places) for _, places in found) == np.count_nonzero(words):
            self._places = [known for known in self._places if not known[0] & differences.keys()] + found

    def _differences(self, addresses: tuple[int, ...]) -> dict[int, int]:
        """By how much addresses differ, of those that do."""
        pairs = enumerate(zip(self.addresses, addresses, strict=True))
        return {i: (b - a) % 2**64 for i, (a, b) in pairs if a != b}

    def _launches(self, raw: bytes) -> Iterator[AnyLaunch]:
        at = 0
        for launch, size in zip(self.launches, self._sizes, strict=True):
            own, at = raw[at : at + size], at + size
            if isinstance(launch, Branch):
                yield launch
            elif isinstance(launch, WalkLaunch):
                yield replace(launch, stages=own)
            elif isinstance(launch, BlasLaunch):
                a, weight, out, workspace = _PLACES.unpack(own)
                yield BlasLaunch(replace(launch.product, a=a, weight=weight, out=out), workspace)
            else:
                yield Moved(launch.shape, launch.grid, launch.shared, own)


def _raw(launch: AnyLaunch, workspace: int) -> bytes:
    """The bytes with addresses: of one kernel for a whole pass its stages, else the argument."""
    if isinstance(launch, Branch):
        return b""
    if isinstance(launch, BlasLaunch):
        product = launch.product
        return _PLACES.pack(product.a, product.weight, product.out, launch.workspace)
    raw = launch.stages if isinstance(launch, WalkLaunch) else launch.argument(workspace)
    assert len(raw) % 8 == 0
    return raw


def _shape(launch: AnyLaunch) -> Any:
    """All else of a launch."""
    if isinstance(launch, Branch):
        return launch
    if isinstance(launch, BlasLaunch):
        return replace(launch.product, a=0, weight=0, out=0)
    tail = (launch.exchange, *launch.tail) if isinstance(launch, WalkLaunch) else ()
    return launch.shape, launch.grid, launch.shared, tail
