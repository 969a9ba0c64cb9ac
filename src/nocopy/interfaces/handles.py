"""Numbers by which a guest names what the host keeps for it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import TypeVar

from nocopy.errors import ClosedError, MemoryLimitError, UsageError

T = TypeVar("T")
MOST = 2**31 - 1


class Handles:
    """The things of one guest by handle. A handle is never used again.

    The first one is random, so that another guest's handle, or one of another run, names nothing here.
    """

    def __init__(self) -> None:
        self._first = self._next = 1 + secrets.randbelow(2**30)
        self._kept: dict[int, object] = {}

    @property
    def used(self) -> tuple[int, int]:
        """The handles that have been used: from the first up to, and without, the second."""
        return self._first, self._next

    def restore(self, used: tuple[int, int], kept: Mapping[int, object]) -> None:
        """Become the handles of a guest that was frozen.

        Raises:
            UsageError: a handle that is kept was never used, or there are no such handles.
        """
        first, after = used
        if not 0 < first <= after <= MOST + 1 or any(not first <= handle < after for handle in kept):
            raise UsageError(f"the handles {sorted(kept)} were to be kept of those from {first} to {after}")
        self._first, self._next, self._kept = first, after, dict(kept)

    def items(self, kind: type[T]) -> list[tuple[int, T]]:
        """All things of a kind with their handles, oldest first."""
        return [(handle, thing) for handle, thing in self._kept.items() if isinstance(thing, kind)]

    def add(self, thing: object) -> int:
        """Return the new handle of a thing.

        Raises:
            MemoryLimitError: all handles have been used.
        """
        if self._next > MOST:
            raise MemoryLimitError(
                "one more handle was asked for; this guest has used them all; start another"
            )
        handle, self._next = self._next, self._next + 1
        self._kept[handle] = thing
        return handle

    def get(self, handle: int, kind: type[T], what: str) -> T:
        """Return the thing that a handle names.

        Raises:
            ClosedError: it is closed.
            UsageError: this guest has no such thing.
        """
        thing = self._kept.get(handle)
        if isinstance(thing, kind):
            return thing
        if thing is None and self._first <= handle < self._next:
            raise ClosedError(f"{what} {handle} was asked for; it is closed. Open another.")
        raise UsageError(f"{what} {handle} was asked for; this guest has no such {what}")

    def replace(self, handle: int, thing: object) -> None:
        """Have a handle name another thing."""
        self._kept[handle] = thing

    def remove(self, handle: int) -> None:
        """Forget a handle."""
        del self._kept[handle]

    def every(self, kind: type[T]) -> list[T]:
        """All things of a kind, oldest first."""
        return [thing for _, thing in self.items(kind)]
