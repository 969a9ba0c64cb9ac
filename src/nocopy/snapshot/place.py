"""Puts the pages of a snapshot file where a memory is to be.

An uncompressed file is mapped copy-on-write: its pages are read when the guest first touches them, and
shared with every other guest that was thawed from it until one of them writes. A compressed file is read.
Pages that the file leaves out stay what they are in a fresh range: zero.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import zstandard

from nocopy.errors import SnapshotFileError
from nocopy.memory.pages import map_file
from nocopy.snapshot.fill import fill
from nocopy.snapshot.format import CHUNK, LIMITS, PAGE, PAGES_PER_CHUNK
from nocopy.snapshot.table import Entries
from nocopy.snapshot.write import segments


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring pages: where they begin in the memory and in the file, and their bytes."""

    offset: int
    position: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Placed:
    """Bytes of a memory that were mapped, and bytes that were read."""

    mapped: int
    read: int


def page_runs(entries: Entries) -> tuple[Run, ...]:
    """The runs of one memory's chunks in an uncompressed file, in order.

    The work is that of a few words for each chunk, and of each run, not of each page.
    """
    if not len(entries):
        return ()
    chunk, bits = entries["offset"] // CHUNK, entries["pages"]
    neighbour = np.diff(chunk) == 1
    before, after = np.zeros_like(bits), np.zeros_like(bits)
    before[1:] = neighbour & (bits[:-1] >> (PAGES_PER_CHUNK - 1))  # the page before the first is stored
    after[:-1] = (neighbour & bits[1:] & 1) << (PAGES_PER_CHUNK - 1)  # and the page after the last
    one = np.uint32(1)
    starts = _bits(chunk, bits & ~(bits << one | before))
    ends = _bits(chunk, bits & ~(bits >> one | after))
    position, runs = int(entries["position"][0]), list[Run]()
    for start, end in zip(starts, ends, strict=True):
        nbytes = (end + 1 - start) * PAGE
        runs.append(Run(start * PAGE, position, nbytes))
        position += nbytes
    return tuple(runs)


def _bits(chunk: npt.NDArray[np.uint64], bits: npt.NDArray[np.unsignedinteger]) -> list[int]:
    """Numbers of the pages whose bits are set, in order."""
    kept = np.flatnonzero(bits)
    row, bit = np.nonzero(bits[kept, None] >> np.arange(PAGES_PER_CHUNK, dtype=np.uint32) & 1)
    return (chunk[kept[row]].astype(np.int64) * PAGES_PER_CHUNK + bit).tolist()


def place_plain(path: str, file: int, runs: Sequence[Run], address: int) -> Placed:
    """Map the runs over a fresh range at `address`.

    A process has some 65,000 mappings for all of its guests. Where a memory has more than a thousand runs,
    the smallest are read instead.

    Raises:
        SnapshotFileError: the file has become shorter.
        MemoryLimitError: the system refuses.
    """
    by_size = sorted(runs, key=lambda run: run.nbytes, reverse=True)
    mapped, read = by_size[: LIMITS["runs"][0]], by_size[LIMITS["runs"][0] :]
    for run in mapped:
        map_file(file, run.position, address + run.offset, run.nbytes)
    for run in read:
        target = memoryview((ctypes.c_ubyte * run.nbytes).from_address(address + run.offset)).cast("B")
        fill(path, file, target, run.position)
    return Placed(sum(run.nbytes for run in mapped), sum(run.nbytes for run in read))


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
    return Placed(0, total)


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
