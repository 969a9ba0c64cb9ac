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
    """The memories of a snapshot file.

    Args:
        snapshot: the file.
        read: bytes from the start of each memory that are read, not mapped: they are about to be written.
    """

    def __init__(self, snapshot: Snapshot, *, read: int = 0) -> None:
        self._snapshot, self._read = snapshot, read

    def place(self, index: int, address: int) -> Ranges:
        """See `Origin`."""
        placed = self._snapshot.map_into(index, address, read=self._read)
        return [(run.offset, run.offset + run.nbytes) for run in placed.mapped]
