"""What a chat template may use up: time, text, items. Every step of a rendering passes through here."""

from __future__ import annotations

import time
from collections.abc import ItemsView, Iterable, Iterator, KeysView, ValuesView
from contextvars import ContextVar
from typing import Any, Final, cast

from nocopy.errors import TemplateError

LIMITS: Final[dict[str, tuple[float, str]]] = {
    "source": (65_536, "characters of a template"),
    "seconds": (2, "seconds of processor time for a rendering"),
    "value": (2**24, "characters of one value, nested ones counted"),
    "items": (200_000, "items of one value, nested ones counted"),
    "total": (2**27, "characters that a rendering makes, its output and everything on the way"),
    "bits": (4096, "bits of a whole number"),
}
"""What a template may use at most. Templates in use stay a hundred times below."""

CLOCK_EVERY: Final = 8
"""Steps between two looks at the clock, which costs about 0.3 us."""
CLOCK_SHIFT: Final = 16
"""64 Ki characters count as a step: making them takes some 10 us."""
ITEM_COST: Final = 8
"""Characters that an item of a container counts for: a pointer's bytes."""
CONTAINERS: Final = (list, tuple, dict, set, frozenset, KeysView, ValuesView, ItemsView)


def limit(name: str) -> int:
    """Return a limit of the table as a whole number."""
    return int(LIMITS[name][0])


def exceeded(name: str) -> TemplateError:
    """Return the error for a limit that a template has passed."""
    most, meaning = LIMITS[name]
    return TemplateError(
        f"the chat template was stopped: it may use {most:,} {meaning} and wanted more [{name}]"
    )


class Budget:
    """What is left of one rendering."""

    def __init__(self) -> None:
        self._deadline = time.thread_time() + LIMITS["seconds"][0]
        self._characters = limit("total")
        self._until_clock = CLOCK_EVERY

    def step(self) -> None:
        """Count one turn of a loop, call or filter.

        Raises:
            TemplateError: the time is used up.
        """
        self._until_clock -= 1
        if self._until_clock <= 0:
            self._until_clock = CLOCK_EVERY
            if time.thread_time() > self._deadline:
                raise exceeded("seconds")

    def characters(self, count: int) -> None:
        """Count text that was made.

        Raises:
            TemplateError: too much in all.
        """
        self._until_clock -= count >> CLOCK_SHIFT
        self.step()
        self._characters -= count
        if self._characters < 0:
            raise exceeded("total")

    def made(self, value: Any) -> Any:
        """Count a new value and return it; iterators are counted as they are read.

        Raises:
            TemplateError: it is too large, or too much was made in all.
        """
        if isinstance(value, str):
            self.characters(room(len(value)))
        elif isinstance(value, CONTAINERS):
            self.characters(weigh(cast(object, value)))
        elif isinstance(value, int):
            if value.bit_length() > limit("bits"):
                raise exceeded("bits")
        elif isinstance(value, Iterator):
            return self.counted(cast(Iterator[Any], value))
        return cast(Any, value)

    def counted(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yield items, each of which is a step."""
        for item in items:
            self.step()
            yield item


BUDGET: Final[ContextVar[Budget]] = ContextVar("budget")
"""The budget of the rendering that this thread is busy with."""


def room(characters: int) -> int:
    """Return a size that a value may have.

    Raises:
        TemplateError: it may not.
    """
    if characters > limit("value"):
        raise exceeded("value")
    return characters


def weigh(value: object) -> int:
    """Return the characters of a value, each item counting for some, however deep it lies.

    An item that is reached in several ways counts each time, because that is how often it would be printed.

    Raises:
        TemplateError: it has too many items or characters.
    """
    characters = items = 0
    pending: list[Any] = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            characters += len(item)
            if characters > limit("value"):
                raise exceeded("value")
        elif isinstance(item, CONTAINERS):
            items += len(cast(Any, item))
            if items > limit("items"):
                raise exceeded("items")
            if isinstance(item, dict):
                pending += cast(dict[Any, Any], item).keys()
                pending += cast(dict[Any, Any], item).values()
            else:
                pending += cast(Iterable[Any], item)
    return characters + items * ITEM_COST
