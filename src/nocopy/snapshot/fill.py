"""Reads a piece of a snapshot file, all of it or an error."""

from __future__ import annotations

import os

from nocopy.errors import SnapshotFileError


def fill(path: str, file: int, target: memoryview, position: int) -> None:
    """Fill `target` from byte `position` of the file.

    Raises:
        SnapshotFileError: the file ends before ("truncated"), or the system cannot read it ("unreadable").
    """
    try:
        while target:
            done = os.preadv(file, [target], position)
            if done == 0:
                raise SnapshotFileError(
                    path, "truncated", f"it became shorter; it ends at byte {position} now"
                )
            target, position = target[done:], position + done
    except OSError as error:
        raise unreadable(path, position, error) from error


def unreadable(path: str, position: int, error: OSError) -> SnapshotFileError:
    """The error for a file that the system cannot read at byte `position`."""
    return SnapshotFileError(path, "unreadable", f"at byte {position} the system says: {error.strerror}")
