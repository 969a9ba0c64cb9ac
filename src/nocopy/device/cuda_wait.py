"""Waiting for the GPU: asleep for most of what a piece of a program took before, awake for its end.

A thread that wakes too late leaves the GPU idle until the next play: with sleeps of a sixteenth of the time
so far, eight tokens of 0.7 ms had ended 0.2 ms before that was noticed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

SPINS = 400
"""Polls before the wait sleeps for the first time: about 0.2 ms, longer than any small program."""
LEAST, SHARE, MOST = 100e-6, 0.04, 1.5e-3
"""How far from what it took before the end is looked for: seconds, and a share more, but at most so many."""
LONGEST = 0.1
"""Seconds from which on it does not matter."""
SHORTER = 0.8
"""Times what was slept, for the next time, if the end was slept through."""
FORGOTTEN = 0.9
"""Times by how much sleeps ended late, for the next."""
NAP_SHARE, SHORTEST_NAP, LONGEST_NAP = 1 / 32, 20e-6, 1e-3
"""Of the time so far, and seconds: sleeps where nothing is known. They are shorter than the time in which the
end is looked for, so that the next time finds it."""


@dataclass
class Taken:
    """Seconds that something took when it was last waited for; by how many a sleep in it ended late."""

    seconds: float = 0.0
    late: float = 0.0


def wait(ready: Callable[[], bool], deadline: float | None, taken: Taken) -> bool:
    """Wait until something is ready; False if the deadline (of `time.monotonic`) passed first.

    Args:
        ready: whether it is; called often.
        deadline: None for none.
        taken: what it took before. What it takes is kept there.
    """
    began = time.monotonic()

    def since() -> float:
        return time.monotonic() - began

    for _ in range(SPINS):
        if ready():
            taken.seconds = since()
            return True
    before, end = taken.seconds, inf if deadline is None else deadline - began
    margin = min(LEAST + SHARE * before, MOST)
    if before < LONGEST:
        late = taken.late = FORGOTTEN * taken.late
        waking = min(before - margin, end) - late
        asleep = waking - since()
        if asleep > 0:
            time.sleep(asleep)
            taken.late = max(late, since() - waking)
            if ready():
                taken.seconds = SHORTER * since()
                return True
        while since() < min(before + margin, end):
            if ready():
                taken.seconds = since()
                return True
    while not ready():
        if since() >= end:
            return False
        time.sleep(min(max(NAP_SHARE * since(), SHORTEST_NAP), LONGEST_NAP))
    taken.seconds = since()
    return True
