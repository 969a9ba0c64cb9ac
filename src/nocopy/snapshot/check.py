"""The parts of a snapshot file that are not pages: read within bounds, then checked against one another.

The order is that of trust: the header against the file's size, the digest over all three parts, the
signature, and only then what they say.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from nocopy.errors import SnapshotDamagedError, SnapshotFileError
from nocopy.snapshot.fill import fill
from nocopy.snapshot.format import (
    CHUNK,
    COMPRESSED,
    DIGEST,
    ENTRY,
    HEADER,
    LIMITS,
    MAGIC,
    PAGE,
    PAGES_PER_CHUNK,
    SIGNATURE_BYTES,
    VERSION,
    Header,
    Signature,
    data_offset,
)
from nocopy.snapshot.manifest import Manifest
from nocopy.snapshot.sign import Verifier, check_signature
from nocopy.snapshot.typed_json import Defect, load

Entries = npt.NDArray[np.void]


@dataclass(frozen=True, slots=True)
class Checked:
    """A sound file, without its pages.

    `entries` is the table, sorted by memory and offset; `content` the content digest.
    """

    header: Header
    manifest: Manifest
    entries: Entries
    content: bytes


class Source(Protocol):
    """Where the bytes of a snapshot file come from."""

    path: str
    """What it is called in messages."""
    nbytes: int
    """The file's size."""

    def read(self, at: int, nbytes: int) -> bytes:
        """So many bytes of the file; fewer where it ends."""
        ...


class OpenFile:
    """A snapshot file itself, by its descriptor."""

    def __init__(self, path: str, file: int) -> None:
        self.path, self.file = path, file
        self.nbytes = os.fstat(file).st_size

    def read(self, at: int, nbytes: int) -> bytes:
        """See `Source`."""
        data = bytearray(min(nbytes, max(0, self.nbytes - at)))
        fill(self.path, self.file, memoryview(data), at)
        return bytes(data)


def check_file(source: Source, key: Verifier | None) -> Checked:
    """Read and check everything but the chunks.

    Args:
        source: the file.
        key: who must have signed it; None asks for nothing.

    Raises:
        SnapshotFileError: it breaks the format.
        SnapshotDamagedError: the digest does not match.
        SnapshotSignatureError: `key` did not sign it.
    """
    return _Reader(source).check(key)


class _Reader:
    def __init__(self, source: Source) -> None:
        self.source, self.path, self.nbytes = source, source.path, source.nbytes

    def fail(self, kind: str, message: str) -> NoReturn:
        raise SnapshotFileError(self.path, kind, message)

    def read(self, at: int, nbytes: int, what: str) -> bytes:
        """So many bytes, all of them. Nothing is allocated for a number that leads out of the file."""
        data = self.source.read(at, nbytes)
        if len(data) != nbytes:
            self.fail("truncated", f"{what} needs bytes {at} to {at + nbytes}; the file has {self.nbytes}")
        return data

    def check(self, key: Verifier | None) -> Checked:
        raw = self.read(0, HEADER.size, "the header")
        header = self.header(raw)
        manifest = self.read(HEADER.size, header.manifest_nbytes, "the manifest")
        gap = HEADER.size + header.manifest_nbytes
        if self.read(gap, header.data - gap, "the padding") != bytes(header.data - gap):
            self.fail("header", "the bytes between manifest and pages must be zero")
        table = self.read(header.table, header.trailer - header.table, "the table")
        trailer = self.read(header.trailer, header.nbytes - header.trailer, "the trailer")
        signature, digest = trailer[:-DIGEST], trailer[-DIGEST:]
        root = blake3(raw).update(manifest).update(table)
        content = root.digest()
        if root.update(signature).digest() != digest:
            raise SnapshotDamagedError(self.path, "header, manifest, table and signature")
        check_signature(self.path, header.signature, content, signature, key)
        try:
            said = load(Manifest, manifest)
        except Defect as error:
            self.fail("manifest", str(error))
        entries = np.frombuffer(table, ENTRY)
        self.table(header, said, entries)
        return Checked(header, said, entries, content)

    def header(self, raw: bytes) -> Header:
        magic, version, flags, *rest = HEADER.unpack(raw)
        if magic != MAGIC:
            self.fail("magic", f"a snapshot starts with {MAGIC!r}; this file with {magic!r}")
        nbytes, manifest, data, table, trailer, entries, page, chunk, signature, zero, zeros = rest
        found = {"version": version, "page size": page, "chunk size": chunk}
        for what, known in (("version", VERSION), ("page size", PAGE), ("chunk size", CHUNK)):
            if found[what] != known:
                self.fail("version", f"the {what} is {found[what]}; this reader knows {known}")
        if flags & ~COMPRESSED:
            self.fail("version", f"the flags are {flags:#x}; this reader knows {COMPRESSED:#x}")
        if signature not in list(Signature):
            self.fail(
                "version", f"the signature is of kind {signature}; this reader knows 0 to {max(Signature)}"
            )
        if zero or any(zeros):
            self.fail("header", "the last 52 bytes of the header must be zero")
        if nbytes != self.nbytes:
            self.fail(
                "truncated", f"the header says {nbytes} bytes; the file has {self.nbytes}. Fetch it again"
            )
        most = LIMITS["manifest"][0]
        if manifest > most:
            self.fail("too-large", f"the manifest has {manifest} bytes; this reader accepts {most}")
        compressed = bool(flags & COMPRESSED)
        wanted = (data_offset(manifest, compressed=compressed), table + entries * ENTRY.itemsize)
        end = trailer + SIGNATURE_BYTES[Signature(signature)] + DIGEST
        if (data, trailer) != wanted or not data <= table or end != nbytes:
            self.fail(
                "header",
                f"pages at {data}, a table at {table} with {entries} entries and trailer at {trailer} do not"
                f" make {nbytes} bytes",
            )
        return Header(compressed, nbytes, manifest, data, table, entries, trailer, Signature(signature))

    def table(self, header: Header, manifest: Manifest, entries: Entries) -> None:
        """Refuse chunks that are out of order, outside their memory or the file, overlap, or leave a hole."""
        memory, offset, position = entries["memory"], entries["offset"], entries["position"]
        sizes = np.array([m.size for m in manifest.memories], np.uint64)
        self.all(entries["zero"] == 0, "table", "has a byte that must be zero and is not")
        self.all(memory < len(sizes), "table", f"names a memory; there are {len(sizes)}")
        self.all(offset % CHUNK == 0, "table", f"starts at an offset that is no multiple of {CHUNK}")
        room = sizes[memory.astype(np.intp)]
        self.all(offset < room, "table", "lies outside its memory")
        self.all(
            (entries["pages"] > 0) & (entries["pages"] < 1 << PAGES_PER_CHUNK),
            "table",
            "has no or unknown pages",
        )
        # Sizes are at most 2^48 and multiples of 64 KiB, so nothing below can wrap.
        left = np.minimum((room - offset) // PAGE, PAGES_PER_CHUNK)
        self.all(entries["pages"] >> left == 0, "table", "has a page outside its memory")
        later = (memory[1:] > memory[:-1]) | ((memory[1:] == memory[:-1]) & (offset[1:] > offset[:-1]))
        self.all(np.append(True, later), "table", "does not come after the one before it")
        stored = entries["stored"].astype(np.uint64)
        full = np.bitwise_count(entries["pages"]).astype(np.uint64) * PAGE
        fits = (stored > 0) & (stored <= full) if header.compressed else stored == full
        self.all(fits, "table", "has a number of bytes that its pages cannot have")
        ends = header.data + np.cumsum(stored, dtype=np.uint64)
        self.all(position == ends - stored, "table", "does not follow the one before it in the file")
        end = int(ends[-1]) if len(ends) else header.data
        if end != header.table:
            self.fail("table", f"the chunks end at byte {end}; the table begins at {header.table}")

    def all(self, fits: Any, kind: str, message: str) -> None:
        """Refuse the first chunk that does not fit."""
        if not fits.all():
            self.fail(kind, f"chunk {int(np.argmin(fits))} {message}")
