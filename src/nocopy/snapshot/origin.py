"""Where the bytes of frozen memories are: a snapshot file, or the image that forks share (`image.py`)."""

from __future__ import annotations

from typing import Protocol

from nocopy.snapshot.read import Snapshot

Ranges = list[tuple[int, int]]


class Origin(Protocol):
    """Where the bytes of a frozen guest's memories are."""

    def place(self, index: int, address: int) -> Ranges:
        """Put a memory's pages or bytes into a fresh range.

        Returns:
            The ranges [start, end) that were mapped from a file.
        """
        ...


class FileOrigin:
    """The memories of a snapshot file."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def place(self, index: int, address: int) -> Ranges:
        """See `Origin`."""
        placed = self._snapshot.map_into(index, address)
        return [(run.offset, run.offset + run.nbytes) for run in placed.mapped]
