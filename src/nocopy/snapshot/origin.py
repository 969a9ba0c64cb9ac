"""Where the bytes of frozen memories are: a snapshot file, or the image that forks share (`image.py`)."""

from __future__ import annotations

from typing import Protocol

from nocopy.snapshot.read import Snapshot

Ranges = list[tuple[int, int]]


class Origin(Protocol):
    """Where the bytes of a frozen guest's memories are."""

    def place(self, index: int, address: int) -> object:
        """Put a memory's pages or bytes into a fresh range."""
        ...

    def borrowed(self, index: int) -> Ranges:
        """The ranges [start, end) of a memory that `place` maps from a file."""
        ...


class FileOrigin:
    """The memories of a snapshot file."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def place(self, index: int, address: int) -> object:
        """See `Origin`."""
        return self._snapshot.map_into(index, address)

    def borrowed(self, index: int) -> Ranges:
        """See `Origin`."""
        if self._snapshot.compressed:
            return []
        return [(run.offset, run.offset + run.nbytes) for run in self._snapshot.memory(index)]
