"""Writes a snapshot file: finds the pages that hold something, hashes and writes them, publishes the file.

Pages go from the guest's memory to the file in the largest pieces there are, while other threads hash them.
The guest must not run meanwhile: a page that changes between its hash and its write makes a damaged file.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import zstandard
from blake3 import blake3

from nocopy.errors import UsageError
from nocopy.snapshot.format import (
    CHUNK,
    LIMITS,
    PAGE,
    PAGES_PER_CHUNK,
    ROW,
    SIGNATURE_BYTES,
    Header,
    Signature,
    data_offset,
)
from nocopy.snapshot.in_order import in_order
from nocopy.snapshot.layout import Chunk, Stretch, page_runs, positions, segments
from nocopy.snapshot.manifest import Manifest
from nocopy.snapshot.publish import WRITE_BYTES, Publication
from nocopy.snapshot.scan import bytes_at, nonzero_pages, runs
from nocopy.snapshot.sign import Signer
from nocopy.snapshot.typed_json import Defect, dump

LEVEL: Final = 3
"""zstd's own default."""
THREADS: Final = min(os.cpu_count() or 1, 8)
GROUP: Final = 16
"""Chunks that a thread hashes at a time: 16 MiB, so that handing over work costs nothing."""

Progress = Callable[[int, int], None]
Row = tuple[int, int, bytes]
"""What the table says of a chunk: its position in the file, its bytes there, and their digest."""
Ranges = Sequence[tuple[int, int]]
"""First byte and one past the last of each."""


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
    manifest: Manifest | Callable[[], Manifest],
    memories: Sequence[Source],
    *,
    held: Sequence[Ranges] | None = None,
    compress: bool = False,
    signer: Signer | None = None,
    progress: Progress | None = None,
) -> Written:
    """Write a snapshot and publish it under `path`; what was there is replaced when all of it is on the disk.

    Args:
        path: the file.
        manifest: says what the memories are; or makes what does, while the disk writes already.
        memories: the pages; one for each of `manifest.memories`, of the same size.
        held: ranges of each memory, in order, outside of which nothing has to be kept. None: pages that are
            not zero are looked for.
        compress: zstd, for transport: such a file is read when it is thawed, not mapped.
        signer: signs it.
        progress: called with (bytes of memory written, bytes to write).

    Raises:
        UsageError: the memories are not those of the manifest, or the manifest breaks its types.
        SnapshotWriteError: the file cannot be written; `path` has what it had.
    """
    views = [bytes_at(memory.address, memory.size).data for memory in memories]
    chunks = _chunks([_held(memory) for memory in memories] if held is None else held)
    kind = Signature.NONE if signer is None else signer.kind
    with Publication(path) as file:
        report = _Report(progress, sum(pages.bit_count() for _, _, pages in chunks) * PAGE)
        write = _write_compressed if compress else _write_plain
        # Of few pages the disk begins with at once, where they lie if the manifest ends before them.
        early = len(chunks) <= GROUP and not compress
        encoded = b"" if early else _encode(manifest, memories)
        start = data_offset(len(encoded), compressed=compress)
        rows, table = write(file, start, chunks, views, report)
        if early:
            encoded, guess = _encode(manifest, memories), start
            start = data_offset(len(encoded), compressed=compress)
            if start != guess:
                file.clear()
                report.done = 0
                rows, table = write(file, start, chunks, views, report)
        entries = b"".join(
            ROW.pack(offset, position, stored, pages, memory, 0, digest)
            for (memory, offset, pages), (position, stored, digest) in zip(chunks, rows, strict=True)
        )
        trailer = table + len(entries)
        nbytes = trailer + SIGNATURE_BYTES[kind] + 32
        header = Header(compress, nbytes, len(encoded), start, table, len(chunks), trailer, kind).pack()
        root = blake3(header).update(encoded).update(entries)
        content = root.digest()
        signature = b"" if signer is None else signer.sign(content)
        file.write(table, entries + signature + root.update(signature).digest())
        file.write(0, header + encoded)  # what follows up to the first chunk was never written: zeros
        file.commit()
    return Written(content, nbytes, report.total)


def _encode(manifest: Manifest | Callable[[], Manifest], memories: Sequence[Source]) -> bytes:
    manifest = manifest if isinstance(manifest, Manifest) else manifest()
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


def _held(memory: Source) -> Ranges:
    """Where a memory holds anything but zeros."""
    return [(first * PAGE, end * PAGE) for first, end in runs(nonzero_pages(memory.address, memory.size))]


def _chunks(held: Sequence[Ranges]) -> list[Chunk]:
    """The chunks with a page to store, in order."""
    found: list[Chunk] = []
    for memory, ranges in enumerate(held):
        chunks: dict[int, int] = {}
        for start, end in ranges:
            first, last = start // PAGE, -(-end // PAGE) if start < end else 0
            while first < last:
                chunk, skip = divmod(first, PAGES_PER_CHUNK)
                count = min(last - first, PAGES_PER_CHUNK - skip)
                chunks[chunk] = chunks.get(chunk, 0) | (1 << count) - 1 << skip
                first += count
        found += [(memory, at * CHUNK, pages) for at, pages in chunks.items()]
    return found


def _pieces(view: memoryview, offset: int, pages: int) -> Iterator[memoryview]:
    for first, end in segments(pages):
        yield view[offset + first : offset + end]


def _write_plain(
    file: Publication,
    start: int,
    chunks: Sequence[Chunk],
    views: Sequence[memoryview],
    report: _Report,
) -> tuple[list[Row], int]:
    """Write the pages; returns what the table says of each chunk, and where the last one ends."""
    places, end = positions(chunks, start)
    groups = [chunks[i : i + GROUP] for i in range(0, len(chunks), GROUP)]
    digests = partial(_digests, views)
    if len(groups) < 2:  # while the disk already writes: starting a thread takes as long as hashing 1 MiB
        _write_runs(file, chunks, places, views, report)
        hashed = map(digests, groups)
    else:
        with _pool() as pool:
            hashed = pool.map(digests, groups)
            _write_runs(file, chunks, places, views, report)
    sizes = (pages.bit_count() * PAGE for _, _, pages in chunks)
    return list(zip(places, sizes, (digest for group in hashed for digest in group), strict=True)), end


@contextmanager
def _pool() -> Generator[ThreadPoolExecutor]:
    """Threads that hash or compress; what they have not begun is dropped if anything fails."""
    with ThreadPoolExecutor(THREADS, "snapshot") as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _write_runs(
    file: Publication,
    chunks: Sequence[Chunk],
    places: Sequence[int],
    views: Sequence[memoryview],
    report: _Report,
) -> None:
    found = [
        Stretch(i, 1, offset, position, 0, pages, memory)
        for i, ((memory, offset, pages), position) in enumerate(zip(chunks, places, strict=True))
    ]
    for memory, view in enumerate(views):
        for run in page_runs(s for s in found if s.memory == memory):
            low = 0
            while low < run.nbytes:
                at = run.position + low
                size = min(WRITE_BYTES - at % WRITE_BYTES, run.nbytes - low)
                file.write(at, view[run.offset + low : run.offset + low + size])
                report.add(size)
                low += size


def _digests(views: Sequence[memoryview], chunks: Sequence[Chunk]) -> list[bytes]:
    return [_digest(views[memory], offset, pages) for memory, offset, pages in chunks]


def _digest(view: memoryview, offset: int, pages: int) -> bytes:
    hasher = blake3()
    for piece in _pieces(view, offset, pages):
        hasher.update(piece)
    return hasher.digest()


_local = threading.local()


def _compress(views: Sequence[memoryview], chunk: Chunk) -> tuple[bytes, bytes]:
    """The bytes to store for a chunk, as they are if zstd does not make them fewer; and their digest."""
    if not hasattr(_local, "compressor"):
        _local.compressor = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True)
    memory, offset, pages = chunk
    raw = b"".join(_pieces(views[memory], offset, pages))
    packed: bytes = _local.compressor.compress(raw)
    stored = packed if len(packed) < len(raw) else raw
    return stored, blake3(stored).digest()


def _write_compressed(
    file: Publication,
    start: int,
    chunks: Sequence[Chunk],
    views: Sequence[memoryview],
    report: _Report,
) -> tuple[list[Row], int]:
    """As `_write_plain`; a few chunks are compressed ahead of the one that is written."""
    rows, at = list[Row](), start
    with _pool() as pool:
        work = in_order(pool, partial(_compress, views), chunks, 4 * THREADS)
        for (_, _, pages), (stored, digest) in zip(chunks, work, strict=True):
            file.write(at, stored)
            report.add(pages.bit_count() * PAGE)
            rows.append((at, len(stored), digest))
            at += len(stored)
    return rows, at
