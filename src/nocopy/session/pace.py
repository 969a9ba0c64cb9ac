"""How many tokens may be fed ahead of being asked for: as many as the time allows that they take."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from time import perf_counter
from typing import TypeAlias

from nocopy.device.protocol import Program

AHEAD = 8
"""Most tokens that are fed ahead of being asked for; a power of two."""
PATIENCE = 0.02
"""Seconds that feeding ahead may take: nobody should see text come in bursts."""

Play: TypeAlias = Callable[[Callable[[], Program]], None]
"""Plays the program that it gets from a function, which it calls once the device is free."""


class Pace:
    """What a step of one token takes: the shortest time so far, compilation left out."""

    def __init__(self) -> None:
        self._seconds = inf

    @property
    def steps(self) -> int:
        """As many steps as `PATIENCE` allows; one while nothing is known."""
        return 1 if self._seconds == inf else min(AHEAD, int(PATIENCE / self._seconds))

    def play(self, play: Play, make: Callable[[], Program], steps: int) -> None:
        """Play what `make` returns, which may compile it first: `steps` steps of one token."""
        start = 0.0

        def ready() -> Program:
            nonlocal start
            program = make()
            start = perf_counter()
            return program

        play(ready)
        self._seconds = min(self._seconds, (perf_counter() - start) / steps)
