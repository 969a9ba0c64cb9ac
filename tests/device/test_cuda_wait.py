"""Waits for the GPU, on a clock of their own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nocopy.device import cuda_wait
from nocopy.device.cuda_wait import LEAST, LONGEST_NAP, SHORTER, Taken, wait

POLL, LATE = 0.5e-6, 60e-6
"""Seconds that a poll takes; by which most sleeps are longer than was asked for."""


class Clock:
    """A clock that goes on only while somebody polls or sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.asleep = 0.0
        self.late = LATE

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.asleep += seconds
        self.now += seconds + self.late

    def waited(self, seconds: float, taken: Taken, deadline: float | None = None) -> float | None:
        """Wait for something that takes so long: how long that was, or None if the deadline came first."""
        began, self.asleep = self.now, 0.0

        def ready() -> bool:
            self.now += POLL
            return self.now >= began + seconds

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cuda_wait, "time", SimpleNamespace(monotonic=self.monotonic, sleep=self.sleep))
            done = wait(ready, None if deadline is None else began + deadline, taken)
        return self.now - began if done else None


@given(st.floats(1e-3, 50e-3))
def test_the_end_is_noticed_at_once_from_the_fourth_time_on(seconds: float) -> None:
    clock, taken = Clock(), Taken()
    for _ in range(3):
        clock.waited(seconds, taken)
    for _ in range(3):
        found = clock.waited(seconds, taken)
        assert found is not None
        assert found - seconds < 5e-6
        assert taken.seconds == pytest.approx(seconds, abs=5e-6)


def test_most_of_the_time_is_slept() -> None:
    clock, taken = Clock(), Taken()
    for _ in range(3):
        clock.waited(5e-3, taken)
    assert clock.asleep == pytest.approx(0.95 * 5e-3, rel=0.1)


def test_sleeps_that_end_late_begin_earlier() -> None:
    clock, taken = Clock(), Taken()
    clock.late = 1e-3
    for _ in range(5):
        clock.waited(5e-3, taken)
    found = clock.waited(5e-3, taken)
    assert found is not None
    assert found - 5e-3 < 5e-6
    clock.late = LATE
    for _ in range(30):
        clock.waited(5e-3, taken)
    assert clock.asleep > 0.85 * 5e-3, "one that was late is forgotten"


@given(st.floats(0, 0.3), st.floats(0, 0.3))
def test_what_has_become_shorter_or_longer_is_learned(before: float, seconds: float) -> None:
    clock, taken = Clock(), Taken()
    clock.waited(before, taken)
    first = clock.waited(seconds, taken)
    assert first is not None
    assert first < max(before, seconds + LONGEST_NAP) + LEAST
    for _ in range(20):
        found = clock.waited(seconds, taken)
    assert found is not None
    assert found - seconds < LONGEST_NAP + LEAST


def test_an_end_that_was_slept_through_is_looked_for_earlier_the_next_time() -> None:
    clock, taken = Clock(), Taken(20e-3)
    first = clock.waited(1e-3, taken)
    assert first is not None
    assert taken.seconds == pytest.approx(SHORTER * first)


@pytest.mark.parametrize("before", [0.0, 1e-3, 50e-3])
def test_a_deadline_ends_the_wait(before: float) -> None:
    clock, taken = Clock(), Taken(before)
    start = clock.now
    assert clock.waited(10.0, taken, deadline=5e-3) is None
    assert clock.now - start < 5e-3 + LONGEST_NAP + LEAST
    assert taken.seconds == before


def test_an_error_is_not_swallowed() -> None:
    def ready() -> bool:
        raise OSError("lost")

    with pytest.raises(OSError, match="lost"):
        wait(ready, None, Taken())


def test_a_long_one_is_slept_through_in_short_sleeps() -> None:
    clock, taken = Clock(), Taken(2.0)
    found = clock.waited(1.0, taken)
    assert found is not None
    assert found - 1.0 < LONGEST_NAP + LEAST
