"""A snapshot file without its padding and chunks: what a store keeps under the snapshot's name.

Its bytes are those of the file, so the digests and the signature hold; the table says which chunks belong in
between.
"""

from __future__ import annotations

from nocopy.errors import SnapshotFileError
from nocopy.snapshot.format import HEADER, LIMITS

LARGEST = LIMITS["manifest"][0] + (1 << 28)
"""Bytes of a skeleton that are read at most: a full manifest, and the table of 4 TiB."""


class Skeleton:
    """The file that a skeleton was taken from, as far as it is there: a `check.Source`.

    Args:
        path: what it is called in messages.
        data: `Snapshot.skeleton()`.

    Raises:
        SnapshotFileError: it is shorter or longer than its header says.
    """

    def __init__(self, path: str, data: bytes) -> None:
        self.path, self.data = path, data
        if len(data) < HEADER.size:
            raise SnapshotFileError(
                path, "truncated", f"a header has {HEADER.size} bytes; {len(data)} are there"
            )
        _, _, _, self.nbytes, manifest, self.chunks, self.table, *_ = HEADER.unpack_from(data)
        self.head = HEADER.size + manifest
        if len(data) != self.head + self.nbytes - self.table:
            raise SnapshotFileError(path, "truncated", f"{len(data)} bytes are not what its header says")

    def read(self, at: int, nbytes: int) -> bytes:
        """Bytes of the file: the padding is made up, chunks are not there."""
        if at >= self.table:
            start = self.head + at - self.table
            return self.data[start : start + nbytes]
        end = min(at + nbytes, self.chunks)
        stored = self.data[at : min(end, self.head)]
        return stored + bytes(max(0, end - max(at, self.head)))
