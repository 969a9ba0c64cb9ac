"""The snapshot file's numbers: header, table entry, limits, and the names of its defects.

docs/snapshot.md is the whole format and shows these tables; a test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Final

import numpy as np
import numpy.typing as npt

MAGIC: Final = b"\x89NOCOPY\n"
VERSION: Final = 1
PAGE: Final = 65536
"""Bytes of a WebAssembly page, the unit that is stored or left out."""
CHUNK: Final = 16 * PAGE
"""Bytes of guest memory under one digest. An agent's next snapshot differs in few chunks of this size, and
1 MiB is still large enough for an object store's requests."""
PAGES_PER_CHUNK: Final = CHUNK // PAGE
BLOCK: Final = 2 * CHUNK
"""Bytes of memory that one entry of a page table can map where they lie in one piece: 2 MiB on x86-64, and on
ARM with pages of 4 KiB."""
COMPRESSED: Final = 1
"""The one flag: chunks may be zstd frames."""
DIGEST: Final = 32
"""Bytes of a BLAKE3 digest."""

HEADER: Final = Struct("<8sIIQQQQQQIIII48s")
"""magic, version, flags; bytes of the file and of the manifest; offsets of data, table and trailer; entries
of the table; page, chunk, signature kind, zero; zeros."""
ENTRY: Final = np.dtype(
    [
        ("offset", "<u8"),
        ("position", "<u8"),
        ("stored", "<u4"),
        ("pages", "<u4"),
        ("memory", "<u4"),
        ("zero", "<u4"),
        ("digest", "u1", (DIGEST,)),
    ]
)
"""A chunk: its offset in its memory, its position and bytes in the file, a bit for each page of it that is
stored, the memory's index, zero, and the digest of the stored bytes."""
ROW: Final = Struct("<QQIIII32s")
"""The same, for an entry by itself."""
Entries = npt.NDArray[np.void]
"""A table: `ENTRY` [chunks]."""

assert HEADER.size == 128
assert ENTRY.itemsize == ROW.size == 64


class Signature(IntEnum):
    """What stands between the table and the file's digest."""

    NONE = 0
    HMAC_SHA256 = 1
    ED25519 = 2


SIGNATURE_BYTES: Final = {Signature.NONE: 0, Signature.HMAC_SHA256: 32, Signature.ED25519: 96}
"""An Ed25519 signature is the public key (32 bytes), then the signature (64)."""
SIGNED: Final = b"nocopy snapshot v1\0"
"""What is signed: this, then the content digest."""

LIMITS: Final[dict[str, tuple[int, str]]] = {
    "manifest": (2**26, "bytes of manifest"),
    "memories": (100, "memories of a snapshot"),
    "memory": (2**48, "bytes of one memory"),
    "runs": (1024, "runs that are mapped; the smallest of a memory that has more are read"),
}
"""What a reader accepts or does at most."""

DEFECTS: Final[dict[str, str]] = {
    "magic": "the first eight bytes are not a snapshot's",
    "version": "another format version, page size, chunk size, flag or signature kind than this reader knows",
    "header": "lengths and offsets of the header do not fit together, or a byte that must be zero is not",
    "truncated": "the file has fewer or more bytes than its header says",
    "unreadable": "the operating system could not read it",
    "too-large": "a length or a count above a limit of this reader",
    "manifest": "not canonical JSON, or a field that is missing, unknown, ill-typed or out of bounds",
    "table": "a chunk out of order or place, outside its memory, or of impossible size; padding not zero",
    "compression": "a chunk that does not decompress to the bytes that its pages need",
}
"""`SnapshotFileError.kind`."""


@dataclass(frozen=True, slots=True)
class Header:
    """The first 128 bytes. Offsets and lengths are bytes of the file."""

    compressed: bool
    nbytes: int
    manifest_nbytes: int
    data: int
    table: int
    entries: int
    trailer: int
    signature: Signature

    def pack(self) -> bytes:
        """The header as it stands in the file: u8 [128]."""
        return HEADER.pack(
            MAGIC,
            VERSION,
            COMPRESSED if self.compressed else 0,
            self.nbytes,
            self.manifest_nbytes,
            self.data,
            self.table,
            self.trailer,
            self.entries,
            PAGE,
            CHUNK,
            self.signature,
            0,
            bytes(48),
        )


def data_offset(manifest_nbytes: int, *, compressed: bool) -> int:
    """Where the first chunk lies: after the manifest, on a page boundary if chunks are to be mapped."""
    end = HEADER.size + manifest_nbytes
    return end if compressed else -(-end // PAGE) * PAGE
