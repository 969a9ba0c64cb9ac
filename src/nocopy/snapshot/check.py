"""The parts of a snapshot file that are not pages: read within bounds, then checked against one another.

The order is that of trust: the header against the file's size, the digest over all three parts, the
signature, and only then what they say.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, NoReturn, Protocol

import numpy as np
from blake3 import blake3

from nocopy.errors import SnapshotDamagedError, SnapshotFileError
from nocopy.snapshot.fill import fill, unreadable
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
from nocopy.snapshot.layout import Run, Stretch, page_runs, stretches
from nocopy.snapshot.manifest import Manifest
from nocopy.snapshot.sign import Verifier, check_signature
from nocopy.snapshot.table import check_table
from nocopy.snapshot.typed_json import Defect, load

FIRST: Final = 4096
"""Bytes that are read at once: most manifests end before."""
LAST_SIGNATURE: Final = max(Signature)
ZEROS: Final = bytes(48)
KNOWN: Final = 16
"""Files of which is kept what they say, if it is at most `KNOWN_BYTES` long."""
KNOWN_BYTES: Final = 1 << 18


@dataclass(frozen=True)
class Checked:
    """A sound file, without its pages.

    `table` is sorted by memory and offset, `stretches` the same in few pieces, `content` the content digest.
    """

    header: Header
    manifest: Manifest
    table: bytes
    stretches: list[Stretch]
    content: bytes
    _runs: dict[int, tuple[Run, ...]] = field(default_factory=dict[int, tuple[Run, ...]], init=False)

    def runs(self, index: int) -> tuple[Run, ...]:
        """Where the pages of a memory lie, if the file is not compressed."""
        if index not in self._runs:
            self._runs[index] = page_runs(s for s in self.stretches if s.memory == index)
        return self._runs[index]

    @cached_property
    def entries(self) -> Entries:
        """The table, entry by entry: `format.ENTRY` [chunks]."""
        return np.frombuffer(self.table, ENTRY)


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
        found = os.fstat(file)
        self.nbytes = found.st_size
        self.regular = stat.S_ISREG(found.st_mode)

    def read(self, at: int, nbytes: int) -> bytes:
        """See `Source`."""
        wanted = min(nbytes, max(0, self.nbytes - at))
        try:
            data = os.pread(self.file, wanted, at)  # almost always all of it
        except OSError as error:
            raise unreadable(self.path, at, error) from error
        if len(data) == wanted:
            return data
        rest = bytearray(wanted - len(data))
        fill(self.path, self.file, memoryview(rest), at + len(data))
        return data + rest


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


@dataclass(frozen=True)
class _Known:
    """A file that was found sound: its bytes without chunks and padding, and what they say."""

    head: bytes
    tail: bytes
    signature: bytes
    checked: Checked


_known: dict[str, _Known] = {}
"""By path."""


def _header(path: str, raw: bytes, size: int) -> Header:
    """What the first bytes of a file of `size` bytes say."""

    def fail(kind: str, message: str) -> NoReturn:
        raise SnapshotFileError(path, kind, message)

    magic, version, flags, nbytes, manifest, data, table, trailer, entries, *rest = HEADER.unpack(raw)
    page, chunk, signature, zero, zeros = rest
    if magic != MAGIC:
        fail("magic", f"a snapshot starts with {MAGIC!r}; this file with {magic!r}")
    if (version, page, chunk) != (VERSION, PAGE, CHUNK):
        fail(
            "version",
            f"it is of version {version} with pages of {page} bytes and chunks of {chunk};"
            f" this reader knows {VERSION}, {PAGE} and {CHUNK}",
        )
    if flags & ~COMPRESSED:
        fail("version", f"the flags are {flags:#x}; this reader knows {COMPRESSED:#x}")
    if signature > LAST_SIGNATURE:
        fail("version", f"the signature is of kind {signature}; this reader knows 0 to {LAST_SIGNATURE}")
    if zero or zeros != ZEROS:
        fail("header", "the last 52 bytes of the header must be zero")
    if nbytes != size:
        fail("truncated", f"the header says {nbytes} bytes; the file has {size}. Fetch it again")
    if manifest > LIMITS["manifest"][0]:
        most = LIMITS["manifest"][0]
        fail("too-large", f"the manifest has {manifest} bytes; this reader accepts {most}")
    compressed, kind = flags == COMPRESSED, Signature(signature)
    begins, ends = data_offset(manifest, compressed=compressed), table + entries * ENTRY.itemsize
    end = trailer + SIGNATURE_BYTES[kind] + DIGEST
    if data != begins or trailer != ends or data > table or end != nbytes:
        fail(
            "header",
            f"pages at {data}, a table at {table} with {entries} entries and trailer at {trailer} do not"
            f" make {nbytes} bytes",
        )
    return Header(compressed, nbytes, manifest, data, table, entries, trailer, kind)


def _checked(path: str, header: Header, manifest: bytes, table: bytes, content: bytes) -> Checked:
    """What these bytes say."""
    try:
        said = load(Manifest, manifest)
    except Defect as error:
        raise SnapshotFileError(path, "manifest", str(error)) from error
    found = stretches(table)
    check_table(path, header, said, found)
    return Checked(header, said, table, found, content)


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

    def known(self) -> _Known | None:
        """What was kept of the file, if it still has the same bytes: they need no second check."""
        known = _known.get(self.path)
        if known is None or known.checked.header.nbytes != self.nbytes:
            return None
        head, tail = known.head, known.tail
        table = known.checked.header.table
        same = self.source.read(0, len(head)) == head and self.source.read(table, len(tail)) == tail
        return known if same else None

    def check(self, key: Verifier | None) -> Checked:
        known = self.known()
        if known is not None:
            checked = known.checked
            check_signature(self.path, checked.header.signature, checked.content, known.signature, key)
            return checked
        first = self.source.read(0, FIRST)
        if len(first) < HEADER.size:
            self.read(0, HEADER.size, "the header")
        raw = first[: HEADER.size]
        header = _header(self.path, raw, self.nbytes)
        manifest = first[HEADER.size : HEADER.size + header.manifest_nbytes]
        if len(manifest) < header.manifest_nbytes:
            manifest = self.read(HEADER.size, header.manifest_nbytes, "the manifest")
        tail = self.read(header.table, header.nbytes - header.table, "the table")
        nbytes = header.trailer - header.table
        table, signature, digest = tail[:nbytes], tail[nbytes:-DIGEST], tail[-DIGEST:]
        root = blake3(raw).update(manifest).update(table)
        content = root.digest()
        if root.update(signature).digest() != digest:
            raise SnapshotDamagedError(self.path, "header, manifest, table and signature")
        check_signature(self.path, header.signature, content, signature, key)
        checked = _checked(self.path, header, manifest, table, content)
        if len(manifest) + len(table) <= KNOWN_BYTES:
            _known.pop(self.path, None)
            if len(_known) >= KNOWN:
                _known.pop(next(iter(_known)), None)
            _known[self.path] = _Known(raw + manifest, tail, signature, checked)
        return checked
