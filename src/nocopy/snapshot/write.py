"""Writes a snapshot file: finds the pages that hold something, hashes and writes them, publishes the file.

Pages go from the guest's memory to the file in the largest pieces there are, while other threads hash them.
The guest must not run meanwhile: a page that changes between its hash and its write makes a damaged file.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import zstandard
from blake3 import blake3

from nocopy.errors import UsageError
from nocopy.snapshot.format import (
    CHUNK,
    ENTRY,
    HEADER,
    LIMITS,
    PAGE,
    PAGES_PER_CHUNK,
    SIGNATURE_BYTES,
    Entries,
    Header,
    Signature,
    data_offset,
)
from nocopy.snapshot.in_order import in_order
from nocopy.snapshot.layout import page_runs, positions, segments, stretches
from nocopy.snapshot.manifest import Manifest
from nocopy.snapshot.publish import WRITE_BYTES, Publication
from nocopy.snapshot.scan import Mask, nonzero_pages
from nocopy.snapshot.sign import Signer
from nocopy.snapshot.typed_json import Defect, dump

LEVEL: Final = 3
"""zstd's own default."""
THREADS: Final = min(os.cpu_count() or 1, 8)
GROUP: Final = 16
"""Chunks that a thread hashes at a time: 16 MiB, so that handing over work costs nothing."""

Progress = Callable[[int, int], None]


class Source(Protocol):
    """A live memory. `LinearMemory` is one."""

    @property
    def address(self) -> int:
        """Of the first byte."""
        ...

    @property
    def size(self) -> int:
        """Bytes, a multiple of 64 KiB."""
        ...


@dataclass(frozen=True, slots=True)
class Written:
    """What became of it: the content digest, the file's bytes, bytes of memory that are stored in it."""

    digest: bytes
    nbytes: int
    stored: int


def write_snapshot(
    path: str | os.PathLike[str],
    manifest: Manifest,
    memories: Sequence[Source],
    *,
    compress: bool = False,
    signer: Signer | None = None,
    progress: Progress | None = None,
) -> Written:
    """Write a snapshot and publish it under `path`; what was there is replaced when all of it is on the disk.

    Args:
        path: the file.
        manifest: says what the memories are.
        memories: the pages; one for each of `manifest.memories`, of the same size.
        compress: zstd, for transport: such a file is read when it is thawed, not mapped.
        signer: signs it.
        progress: called with (bytes of memory written, bytes to write).

    Raises:
        UsageError: the memories are not those of the manifest, or the manifest breaks its types.
        SnapshotWriteError: the file cannot be written; `path` has what it had.
    """
    encoded = _encode(manifest, memories)
    views = [_view(memory) for memory in memories]
    masks = [nonzero_pages(memory.address, memory.size) for memory in memories]
    entries = _plan(masks)
    kind = Signature.NONE if signer is None else signer.kind
    with Publication(path) as file, ThreadPoolExecutor(THREADS, "snapshot") as pool:
        start = data_offset(len(encoded), compressed=compress)
        report = _Report(progress, int(entries["stored"].sum(dtype=np.int64)))
        try:
            if compress:
                table = _write_compressed(file, start, entries, views, pool, report)
            else:
                table = _write_plain(file, start, entries, views, pool, report)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        trailer = table + entries.nbytes
        nbytes = trailer + SIGNATURE_BYTES[kind] + 32
        header = Header(compress, nbytes, len(encoded), start, table, len(entries), trailer, kind).pack()
        root = blake3(header).update(encoded).update(entries.tobytes())
        content = root.digest()
        signature = b"" if signer is None else signer.sign(content)
        file.write(table, entries.tobytes() + signature + root.update(signature).digest())
        file.write(0, header + encoded + bytes(start - HEADER.size - len(encoded)))
        file.commit()
    return Written(content, nbytes, report.total)


def _encode(manifest: Manifest, memories: Sequence[Source]) -> bytes:
    sizes, said = [m.size for m in memories], [m.size for m in manifest.memories]
    if sizes != said:
        raise UsageError(f"memories of {sizes} bytes were given to a snapshot; its manifest says {said}")
    try:
        encoded = dump(manifest)
    except Defect as error:
        raise UsageError(f"a snapshot was to be written; its manifest is wrong at {error}") from error
    most = LIMITS["manifest"][0]
    if len(encoded) > most:
        raise UsageError(
            f"a snapshot with a manifest of {len(encoded)} bytes was to be written; {most} are allowed"
        )
    return encoded


class _Report:
    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def add(self, nbytes: int) -> None:
        self.done += nbytes
        if self.progress is not None:
            self.progress(self.done, self.total)


def _view(memory: Source) -> memoryview:
    return memoryview((ctypes.c_ubyte * memory.size).from_address(memory.address)).cast("B")


def _plan(masks: Sequence[Mask]) -> Entries:
    """The chunks with a page to store. `stored` counts the bytes of these pages; positions come later."""
    parts: list[Entries] = []
    for memory, mask in enumerate(masks):
        chunks = -(-len(mask) // PAGES_PER_CHUNK)
        padded = np.zeros(chunks * PAGES_PER_CHUNK, np.uint32)
        padded[: len(mask)] = mask
        pages = padded.reshape(chunks, PAGES_PER_CHUNK)
        bits = pages @ (np.uint32(1) << np.arange(PAGES_PER_CHUNK, dtype=np.uint32))
        kept = np.flatnonzero(bits)
        entries = np.zeros(len(kept), ENTRY)
        entries["memory"] = memory
        entries["offset"] = kept.astype(np.uint64) * CHUNK
        entries["pages"] = bits[kept]
        entries["stored"] = pages[kept].sum(axis=1) * PAGE
        parts.append(entries)
    return np.concatenate(parts) if parts else np.zeros(0, ENTRY)


def _pieces(view: memoryview, offset: int, pages: int) -> Iterator[memoryview]:
    for first, end in segments(pages):
        yield view[offset + first : offset + end]


def _write_plain(
    file: Publication,
    start: int,
    entries: Entries,
    views: Sequence[memoryview],
    pool: ThreadPoolExecutor,
    report: _Report,
) -> int:
    """Fill in positions and digests, write the pages; returns where they end."""
    entries["position"], end = positions(entries, start)
    rows = _rows(entries, views)
    groups = [rows[i : i + GROUP] for i in range(0, len(rows), GROUP)]
    # One group is hashed afterwards, while the disk already writes: starting a thread takes as long.
    hashed = map(_digests, groups) if len(groups) == 1 else pool.map(_digests, groups)
    found = stretches(entries.tobytes())
    for memory, view in enumerate(views):
        for run in page_runs(s for s in found if s.memory == memory):
            low = 0
            while low < run.nbytes:
                at = run.position + low
                size = min(WRITE_BYTES - at % WRITE_BYTES, run.nbytes - low)
                file.write(at, view[run.offset + low : run.offset + low + size])
                report.add(size)
                low += size
    digests = b"".join(digest for group in hashed for digest in group)
    entries["digest"] = np.frombuffer(digests, np.uint8).reshape(-1, 32)
    return end


def _rows(entries: Entries, views: Sequence[memoryview]) -> list[tuple[memoryview, int, int]]:
    """Memory, offset and pages of each chunk."""
    memories: list[int] = entries["memory"].tolist()
    offsets: list[int] = entries["offset"].tolist()
    pages: list[int] = entries["pages"].tolist()
    return list(zip((views[m] for m in memories), offsets, pages, strict=True))


def _digests(rows: list[tuple[memoryview, int, int]]) -> list[bytes]:
    return [_digest(*row) for row in rows]


def _digest(view: memoryview, offset: int, pages: int) -> bytes:
    hasher = blake3()
    for piece in _pieces(view, offset, pages):
        hasher.update(piece)
    return hasher.digest()


_local = threading.local()


def _compress(row: tuple[memoryview, int, int]) -> tuple[bytes, bytes]:
    """The bytes to store for a chunk, as they are if zstd does not make them fewer; and their digest."""
    if not hasattr(_local, "compressor"):
        _local.compressor = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True)
    raw = b"".join(_pieces(*row))
    packed: bytes = _local.compressor.compress(raw)
    stored = packed if len(packed) < len(raw) else raw
    return stored, blake3(stored).digest()


def _write_compressed(
    file: Publication,
    start: int,
    entries: Entries,
    views: Sequence[memoryview],
    pool: ThreadPoolExecutor,
    report: _Report,
) -> int:
    """As `_write_plain`; a few chunks are compressed ahead of the one that is written."""
    at = start
    work = in_order(pool, _compress, _rows(entries, views), 4 * THREADS)
    for index, (stored, digest) in enumerate(work):
        file.write(at, stored)
        report.add(int(entries["stored"][index]))
        entry = entries[index]
        entry["position"], entry["stored"], entry["digest"] = at, len(stored), np.frombuffer(digest, np.uint8)
        at += len(stored)
    return at
