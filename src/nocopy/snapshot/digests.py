"""Checks the pages of a snapshot file against the digests of its table, and that nothing lies between them.

The file is read, not mapped: a file that becomes shorter meanwhile is an error, not a signal.
"""

from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from blake3 import blake3

from nocopy.errors import SnapshotDamagedError, SnapshotFileError
from nocopy.snapshot.check import Checked
from nocopy.snapshot.fill import fill, unreadable
from nocopy.snapshot.format import CHUNK, PAGE, Entries
from nocopy.snapshot.layout import gaps

THREADS: Final = min(os.cpu_count() or 1, 8)
GROUP: Final = 16
"""Chunks that a thread takes at a time."""


def check_digests(
    path: str, file: int, checked: Checked, *, threads: int = THREADS, stop: threading.Event | None = None
) -> None:
    """Read every chunk and compare its digest; read the padding between them.

    Args:
        path: for messages.
        file: the file's descriptor.
        checked: what was read of it.
        threads: how many read and hash.
        stop: ends it early when set.

    Raises:
        SnapshotDamagedError: a chunk differs; the message says which.
        SnapshotFileError: padding is not zero, or the file cannot be read any more.
    """
    if not checked.header.compressed:
        for start, end in gaps(checked.header, checked.entries):
            _check_zero(path, file, start, end)
    entries = checked.entries
    groups: list[Entries] = [entries[i : i + GROUP] for i in range(0, len(entries), GROUP)]
    with ThreadPoolExecutor(threads, "snapshot") as pool:
        damaged = list(pool.map(partial(_first_damaged, path, file, stop), groups))
    for group, index in zip(groups, damaged, strict=True):
        if index is not None:
            entry = group[index]
            raise SnapshotDamagedError(
                path, f"the chunk at {int(entry['offset']):#x} of memory {int(entry['memory'])}"
            )


def _check_zero(path: str, file: int, at: int, end: int) -> None:
    """Refuse a file that is not zero there. Where it has a hole, nothing is read."""
    while True:
        try:
            at = os.lseek(file, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the file's end: it has become shorter
                at = end
            else:
                raise unreadable(path, at, error) from error
        if at >= end:
            return
        piece = bytearray(min(PAGE, end - at))
        fill(path, file, memoryview(piece), at)
        if any(piece):
            raise SnapshotFileError(path, "table", f"the padding between bytes {at} and {end} is not zero")
        at += len(piece)


def _first_damaged(path: str, file: int, stop: threading.Event | None, group: Entries) -> int | None:
    buffer = memoryview(bytearray(min(CHUNK, int(group["stored"].max()))))
    positions, lengths = group["position"].tolist(), group["stored"].tolist()
    for index, (position, length) in enumerate(zip(positions, lengths, strict=True)):
        if stop is not None and stop.is_set():
            return None
        chunk = buffer[:length]
        fill(path, file, chunk, position)
        if blake3(chunk).digest() != group["digest"][index].tobytes():
            return index
    return None
