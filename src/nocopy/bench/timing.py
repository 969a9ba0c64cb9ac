"""Timing that is fair to both sides: they take turns, so that whatever else the machine does hits both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from statistics import median
from time import perf_counter
from typing import Any

MOST_SAMPLES = 200
LEAST_SAMPLES = 3


def interleaved(
    contenders: Mapping[str, Callable[[], Any]], *, seconds: float, settle: float = 0.0
) -> dict[str, float]:
    """Time each contender, in turns, and return its median in seconds. Arguments as for `turns`."""
    return {name: median(taken) for name, taken in turns(contenders, seconds=seconds, settle=settle).items()}


def turns(
    contenders: Mapping[str, Callable[[], Any]],
    *,
    seconds: float,
    settle: float = 0.0,
    most: int = MOST_SAMPLES,
) -> dict[str, list[float]]:
    """Time each contender, in turns, and return what it took in each, in seconds.

    Args:
        contenders: what to call, by name. What a call returns, if it can be called, undoes it: that is called
            after the clock has stopped.
        seconds: for all of them together. Each runs at least `LEAST_SAMPLES` times, whatever that takes,
            after one untimed round, or two if they fit that time.
        settle: seconds for which each is called, untimed, before it is timed in a turn: threads of the one
            before may still wait for more work, busily, on the cores that this one needs.
        most: turns at most.
    """
    start = perf_counter()
    for _ in range(2):
        for call in contenders.values():
            _timed(call)
        if perf_counter() - start > seconds:
            break
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    end = perf_counter() + seconds
    for turn in range(most):
        if turn >= LEAST_SAMPLES and perf_counter() > end:
            break
        for name, call in contenders.items():
            settled = perf_counter() + settle
            while perf_counter() < settled:
                _timed(call)
            samples[name].append(_timed(call))
    return samples


def interval(samples: Sequence[float]) -> tuple[float, float]:
    """Two of the samples, between which the median of all that could be drawn lies: the 95 % interval.

    Nothing is assumed of how they spread. Of fewer than six samples, the least and the greatest: less sure.
    """
    found, skip = sorted(samples), max(int((len(samples) - 1.96 * sqrt(len(samples))) / 2) - 1, 0)
    return found[skip], found[-1 - skip]


def _timed(call: Callable[[], Any]) -> float:
    start = perf_counter()
    undo = call()
    taken = perf_counter() - start
    if callable(undo):
        undo()
    return taken
