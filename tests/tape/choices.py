"""Where generated records get their choices from: hypothesis, a seed, or the bytes of a fuzzer.

One generator serves all three, so what the fuzzer can reach the property tests can reach as well.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from hypothesis import strategies as st

T = TypeVar("T")


class Choices(Protocol):
    """A source of decisions."""

    def integer(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        ...


def one_of(choices: Choices, values: Sequence[T]) -> T:
    return values[choices.integer(0, len(values) - 1)]


def chance(choices: Choices, one_in: int) -> bool:
    return choices.integer(1, one_in) == one_in


class Drawn:
    """Choices that hypothesis makes and shrinks."""

    def __init__(self, draw: Any) -> None:
        self._draw = draw

    def integer(self, low: int, high: int) -> int:
        return self._draw(st.integers(low, high))


class Seeded:
    """Choices from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def integer(self, low: int, high: int) -> int:
        return self._random.randint(low, high)


class Consumed:
    """Choices from a fuzzer's bytes; the lowest value once they are used up."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def integer(self, low: int, high: int) -> int:
        if low == high:
            return low
        width = ((high - low).bit_length() + 7) // 8
        value = int.from_bytes(self._data[self._at : self._at + width], "little")
        self._at += width
        return low + value % (high - low + 1)
