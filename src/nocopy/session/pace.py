"""How many tokens may be fed ahead of being asked for: as many as the time allows that they take."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from time import perf_counter
from typing import TypeAlias

from nocopy.device.protocol import Program

AHEAD = 8
"""Most tokens that are fed ahead of being asked for, in one play or in two that follow each other; a power of
two. More would cost more where a text ends, since all that is fed behind its end is fed for nothing."""
PATIENCE = 0.02
"""Seconds that feeding ahead may take: nobody should see text come in bursts."""

Make: TypeAlias = Callable[[], Program]
Play: TypeAlias = Callable[[Make, Make | None], None]
"""Plays the program that it gets from a function, which it calls once the device is free; the other one makes
what the device may start behind it, if anything."""


class Pace:
    """What a step of one token takes: the shortest time so far, compilation left out.

    Args:
        follows: whether one play is started while another one plays.
    """

    def __init__(self, *, follows: bool = False) -> None:
        self.most = AHEAD // 2 if follows else AHEAD
        """Most steps of a play."""
        self._seconds = inf

    @property
    def known(self) -> bool:
        """Whether any was played."""
        return self._seconds < inf

    @property
    def steps(self) -> int:
        """Steps of a play: a power of two, as many as `PATIENCE` allows, or 0; 1 while nothing is known."""
        return floor2(min(self.most, int(PATIENCE / self._seconds))) if self.known else 1

    def play(self, play: Play, make: Make, steps: int, then: Make | None = None) -> None:
        """Play what `make` returns, which may compile it first: `steps` steps of one token."""
        start = 0.0

        def timed(make: Make) -> Program:
            nonlocal start
            program = make()
            start = perf_counter()
            return program

        play(lambda: timed(make), None if then is None else lambda: timed(then))
        self._seconds = min(self._seconds, (perf_counter() - start) / steps)


def floor2(count: int) -> int:
    """The largest power of two up to a count; 0 for 0."""
    return 1 << count.bit_length() - 1 if count > 0 else 0
