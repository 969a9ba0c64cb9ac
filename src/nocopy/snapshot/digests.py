"""Checks the pages of a snapshot file against the digests of its table.

The file is read, not mapped: a file that becomes shorter meanwhile is an error, not a signal.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from blake3 import blake3

from nocopy.errors import SnapshotDamagedError
from nocopy.snapshot.check import Checked
from nocopy.snapshot.fill import fill
from nocopy.snapshot.format import CHUNK
from nocopy.snapshot.table import Entries

THREADS: Final = min(os.cpu_count() or 1, 8)
GROUP: Final = 16
"""Chunks that a thread takes at a time."""


def check_digests(
    path: str, file: int, checked: Checked, *, threads: int = THREADS, stop: threading.Event | None = None
) -> None:
    """Read every chunk and compare its digest.

    Args:
        path: for messages.
        file: the file's descriptor.
        checked: what was read of it.
        threads: how many read and hash.
        stop: ends it early when set.

    Raises:
        SnapshotDamagedError: a chunk differs; the message says which.
        SnapshotFileError: the file cannot be read any more.
    """
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
