"""The parts of a snapshot file that are not pages: read within bounds, then checked against one another.

The order is that of trust: the header against the file's size, the digest over all three parts, the
signature, and only then what they say.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NoReturn, Protocol

import numpy as np
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
    SIGNATURE_BYTES,
    VERSION,
    Entries,
    Header,
    Signature,
    data_offset,
)
from nocopy.snapshot.manifest import Manifest
from nocopy.snapshot.sign import Verifier, check_signature
from nocopy.snapshot.table import check_table
from nocopy.snapshot.typed_json import Defect, load


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
        head = self.read(HEADER.size, header.data - HEADER.size, "the manifest")
        manifest, padding = head[: header.manifest_nbytes], head[header.manifest_nbytes :]
        if padding != bytes(len(padding)):
            self.fail("header", "the bytes between manifest and pages must be zero")
        tail = self.read(header.table, header.nbytes - header.table, "the table")
        nbytes = header.trailer - header.table
        table, signature, digest = tail[:nbytes], tail[nbytes:-DIGEST], tail[-DIGEST:]
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
        check_table(self.path, header, said, entries)
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
        if signature > max(Signature):
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
