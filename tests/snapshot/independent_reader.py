"""A snapshot reader written from docs/snapshot.md alone. It imports nothing of nocopy.

Run as a program it prints the manifest and how many pages each memory has.
"""

import hashlib
import hmac
import json
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

import zstandard
from blake3 import blake3

PAGE, CHUNK, BLOCK = 65_536, 1_048_576, 2_097_152


class Refused(Exception):
    pass


def require(fact: bool, what: str) -> None:
    if not fact:
        raise Refused(what)


@dataclass
class Contents:
    manifest: dict
    memories: list[dict[int, bytes]]  # for each memory: page number -> 65,536 bytes
    content_digest: bytes
    positions: list[dict[int, int]]  # for each memory: page number -> where it lies; uncompressed files only


def integer(text: str) -> int:
    require(text in ("0", "-0") or not text.lstrip("-").startswith("0"), "leading zero")
    require(text != "-0", "minus zero")
    require(-(2**63) <= int(text) <= 2**64 - 1, "integer out of range")
    return int(text)


def no_float(text: str) -> None:
    raise Refused(f"not an integer: {text}")


ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}


def canonical(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return '"' + "".join(ESCAPES.get(c) or (f"\\u{ord(c):04x}" if c < " " else c) for c in value) + '"'
    if isinstance(value, list):
        return "[" + ",".join(canonical(v) for v in value) + "]"
    assert isinstance(value, dict)
    return "{" + ",".join(f"{canonical(k)}:{canonical(value[k])}" for k in sorted(value)) + "}"


def read(path: Path, secret: bytes | None = None) -> Contents:
    data = path.read_bytes()
    require(len(data) >= 128, "shorter than a header")
    magic, version, flags = struct.unpack_from("<8sII", data, 0)
    nbytes, manifest_nbytes, start, table, trailer, entries = struct.unpack_from("<6Q", data, 16)
    page, chunk, kind = struct.unpack_from("<3I", data, 64)
    require(magic == bytes.fromhex("894E4F434F50590A"), "magic")
    require((version, page, chunk) == (1, PAGE, CHUNK), "version")
    require(flags in (0, 1) and kind in (0, 1, 2), "flags")
    require(data[76:128] == bytes(52), "zeros of the header")
    require(nbytes == len(data), "size")
    require(manifest_nbytes <= 67_108_864, "manifest too long")
    unpadded = 128 + manifest_nbytes
    require(start == (unpadded if flags else (unpadded + PAGE - 1) // PAGE * PAGE), "data")
    signature_nbytes = (0, 32, 96)[kind]
    require(start <= table and trailer == table + 64 * entries, "table")
    require(nbytes == trailer + signature_nbytes + 32, "trailer")
    require(data[unpadded:start] == bytes(start - unpadded), "padding")

    covered = data[:unpadded] + data[table:trailer]
    signature = data[trailer : trailer + signature_nbytes]
    require(blake3(covered + signature).digest() == data[-32:], "digest")
    content_digest = blake3(covered).digest()
    if secret is not None:
        message = b"nocopy snapshot v1\0" + content_digest
        require(kind == 1 and hmac.digest(secret, message, hashlib.sha256) == signature, "signature")

    manifest = read_manifest(data[128:unpadded])
    contents = Contents(manifest, [{} for _ in manifest["memories"]], content_digest, [])
    contents.positions = [{} for _ in manifest["memories"]]
    read_chunks(data, start, table, entries, compressed=flags == 1, contents=contents)
    return contents


def read_manifest(raw: bytes) -> dict:
    try:
        text = raw.decode()
        manifest = json.loads(text, parse_int=integer, parse_float=no_float, parse_constant=no_float)
    except ValueError as error:
        raise Refused("manifest") from error
    require(canonical(manifest) == text, "manifest is not canonical")
    return manifest


def begins_block(data: bytes, table: int, entries: int, index: int) -> bool:
    if index + 1 == entries:
        return False
    one, next_one = (struct.unpack_from("<QQIIII", data, table + 64 * i) for i in (index, index + 1))
    whole = one[3] == next_one[3] == 0xFFFF
    return whole and one[0] % BLOCK == 0 and next_one[0] == one[0] + CHUNK and one[4] == next_one[4]


def read_chunks(
    data: bytes, start: int, table: int, entries: int, *, compressed: bool, contents: Contents
) -> None:
    previous, expected = (-1, -1), start
    for index in range(entries):
        at = table + 64 * index
        offset, position, stored, pages, memory, zero = struct.unpack_from("<QQIIII", data, at)
        require(zero == 0 and memory < len(contents.memories), "entry")
        size = contents.manifest["memories"][memory]["size"]
        require(offset % CHUNK == 0 and offset < size, "offset")
        require(0 < pages < 1 << 16, "pages")
        present = [i for i in range(16) if pages >> i & 1]
        require(offset + (present[-1] + 1) * PAGE <= size, "page after the memory")
        require((memory, offset) > previous, "order")
        previous = (memory, offset)
        if not compressed and begins_block(data, table, entries, index):
            padded = (expected + BLOCK - 1) // BLOCK * BLOCK
            require(data[expected:padded] == bytes(padded - expected), "padding before a block")
            expected = padded
        require(position == expected, "position")
        expected += stored
        full = len(present) * PAGE
        require(0 < stored <= full if compressed else stored == full, "stored")
        require(position + stored <= table, "chunk after the table")
        raw = data[position : position + stored]
        require(blake3(raw).digest() == data[at + 32 : at + 64], "chunk digest")
        if stored < full:
            require(zstandard.frame_content_size(raw) == full, "content size")
            raw = zstandard.ZstdDecompressor().decompress(raw)
        for rank, i in enumerate(present):
            number = offset // PAGE + i
            contents.memories[memory][number] = raw[rank * PAGE : (rank + 1) * PAGE]
            contents.positions[memory][number] = position + rank * PAGE
    require(expected == table, "end of the chunks")


if __name__ == "__main__":
    found = read(Path(sys.argv[1]))
    print(json.dumps(found.manifest, indent=2))
    print([len(memory) for memory in found.memories])
