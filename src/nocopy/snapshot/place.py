"""Puts the pages of a snapshot file where a memory is to be.

An uncompressed file is mapped copy-on-write: its pages are read when the guest first touches them, and
shared with every other guest that was thawed from it until one of them writes. A compressed file is read.
Pages that the file leaves out stay what they are in a fresh range: zero.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import zstandard

from nocopy.errors import SnapshotFileError
from nocopy.memory.pages import map_file
from nocopy.snapshot.fill import fill
from nocopy.snapshot.format import CHUNK, LIMITS, Entries
from nocopy.snapshot.layout import Run, segments


@dataclass(frozen=True, slots=True)
class Placed:
    """Runs of a memory that were mapped, and bytes that were read."""

    mapped: Sequence[Run]
    read: int


def place_plain(path: str, file: int, runs: Sequence[Run], address: int) -> Placed:
    """Map the runs over a fresh range at `address`.

    A process has some 65,000 mappings for all of its guests. Where a memory has more than a thousand runs,
    the smallest are read instead.

    Raises:
        SnapshotFileError: the file has become shorter.
        MemoryLimitError: the system refuses.
    """
    small, large, most = (), runs, LIMITS["runs"][0]
    if len(runs) > most:
        ordered = sorted(runs, key=lambda run: run.nbytes, reverse=True)
        small, large = ordered[most:], ordered[:most]
    for run in large:
        map_file(file, run.position, address + run.offset, run.nbytes)
    for run in small:
        target = memoryview((ctypes.c_ubyte * run.nbytes).from_address(address + run.offset)).cast("B")
        fill(path, file, target, run.position)
    return Placed(large, sum(run.nbytes for run in small))


def place_compressed(path: str, file: int, entries: Entries, address: int) -> Placed:
    """Decompress the chunks into a fresh range at `address`.

    Raises:
        SnapshotFileError: a chunk does not decompress to its pages, or the file has become shorter.
    """
    decompressor, buffer, total = zstandard.ZstdDecompressor(), memoryview(bytearray(CHUNK)), 0
    for entry in entries:
        offset, pages, stored = int(entry["offset"]), segments(int(entry["pages"])), int(entry["stored"])
        nbytes = sum(end - first for first, end in pages)
        data = buffer[:stored]
        fill(path, file, data, int(entry["position"]))
        raw = data if stored == nbytes else memoryview(decompress(path, decompressor, data, nbytes, offset))
        at = 0
        for first, end in pages:
            ctypes.memmove(address + offset + first, bytes(raw[at : at + end - first]), end - first)
            at += end - first
        total += nbytes
    return Placed((), total)


def decompress(
    path: str, decompressor: zstandard.ZstdDecompressor, data: memoryview, nbytes: int, offset: int
) -> bytes:
    """One zstd frame that says its size.

    Raises:
        SnapshotFileError: it is something else, or not of `nbytes` bytes.
    """
    try:
        said = zstandard.frame_content_size(data)
        if said == nbytes:  # checked first: the decompressor allocates what the frame says
            return decompressor.decompress(data, read_across_frames=False, allow_extra_data=False)
    except zstandard.ZstdError as error:
        said = str(error)
    raise SnapshotFileError(
        path, "compression", f"the chunk at {offset:#x} must decompress to {nbytes} bytes; found: {said}"
    )
