"""Marks in a store: they say that a push or a collection is going on.

A mark counts for an hour after it was written; whoever works longer renews it. What a crash has left counts
no more after that hour.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from nocopy.errors import StoreError
from nocopy.snapshot.objects import Objects

LEASE: Final = 3600.0
"""Seconds that a mark counts."""
RENEW: Final = 300.0
"""Seconds after which work that goes on renews its mark."""


@contextmanager
def marked(objects: Objects, kind: str, data: bytes) -> Generator[Mark]:
    """Have a mark in the store while the block runs.

    Args:
        objects: the store's.
        kind: what its key begins with.
        data: what it says.

    Raises:
        StoreError: it cannot be written or removed.
    """
    mark = Mark(objects, f"{kind}{secrets.token_hex(8)}", data)
    try:
        yield mark
    finally:
        objects.delete([mark.key])


class Mark:
    """Says in the store that something is going on; renewed while it does.

    Raises:
        StoreError: it cannot be written.
    """

    def __init__(self, objects: Objects, key: str, data: bytes) -> None:
        self.objects, self.key, self.data = objects, key, data
        self._put()
        found = objects.stat(key)
        if found is None:
            raise StoreError(f"the store {objects.url} does not show what was just written to it: {key}")
        self.written = found.modified
        """When, in seconds of the store's own clock."""

    def _put(self) -> None:
        before = time.monotonic()
        self.objects.put(self.key, self.data)
        self._renewed = before

    def renew(self) -> None:
        """Write it anew if that was long ago.

        Raises:
            StoreError: it is so long ago that it may count as left by a crash.
        """
        if time.monotonic() - self._renewed > RENEW:
            self.require()
            self._put()

    def require(self) -> None:
        """See to it that the mark counts still.

        Raises:
            StoreError: it does not: this program stood still for too long.
        """
        if time.monotonic() - self._renewed > LEASE / 2 or self.objects.stat(self.key) is None:
            raise StoreError(
                f"the work on the store {self.objects.url} was interrupted for too long; start again"
            )
