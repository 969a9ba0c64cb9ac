"""Memories, manifests and broken files for the tests of snapshots."""

import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from blake3 import blake3

from nocopy.memory import LinearMemory
from nocopy.snapshot import Manifest, MemoryState, Snapshot
from nocopy.snapshot.manifest import (
    EnvironmentVariable,
    GlobalState,
    LogitBias,
    ModelState,
    ModuleState,
    SamplerState,
    SessionState,
    TableState,
    TokenState,
    WasiState,
)

PAGE, BLOCK = 65536, 2 << 20


def memory_with(pages: int, filled: Iterable[int], seed: int = 0) -> LinearMemory:
    """A memory in which the pages of `filled` hold random bytes, and the others were never touched."""
    memory = LinearMemory(pages * PAGE, reserve=max(pages, 1) * PAGE, guard=0)
    rng = np.random.default_rng(seed)
    for page in filled:
        memory.write(page * PAGE, rng.bytes(PAGE))
    return memory


def manifest_of(*memories: LinearMemory, **fields) -> Manifest:
    return Manifest("guest", tuple(MemoryState(m.size) for m in memories), **fields)


def full_manifest(*memories: LinearMemory) -> Manifest:
    """One in which every field and every type has a value."""
    sampler = SamplerState(
        0.8, 40, 0.95, 0.05, 1.0, 1.1, -0.5, 0.0, -1, (LogitBias(7, -100.0),), 2**64 - 1, 12
    )
    first = memories[0].size
    return Manifest(
        "guest",
        tuple(MemoryState(m.size, f"memory{i}", 0, m.size, True) for i, m in enumerate(memories)),
        generation=3,
        parent=bytes(range(32)),
        label='a "label" \\ with\n\x01é😀',
        created_by="nocopy test",
        device="cpu",
        module=ModuleState(blake3(b"module").digest(), "app.wasm"),
        globals=(GlobalState(0, "i32", b"\1\2\3\4"), GlobalState(9, "v128", bytes(16))),
        tables=(TableState(0, (1, None, 2)),),
        wasi=WasiState(("app", "-v"), (EnvironmentVariable("LANG", "C"),), ("/in",)),
        models=(ModelState(blake3(b"model").digest(), "m.gguf"),),
        sessions=(SessionState(0, 0, first, 0, 128, 32, "F16", 1, TokenState(0, 0, 2), sampler),),
    )


def contents(memory: LinearMemory) -> dict[int, bytes]:
    """The pages that hold anything."""
    pages = {i: memory.read(i * PAGE, PAGE) for i in range(memory.size // PAGE)}
    return {i: data for i, data in pages.items() if any(data)}


def reseal(data: bytes) -> bytes:
    """Compute the digests of a file anew, of chunks and of the whole, as somebody with bad intentions would.

    Where the header leads out of the file there is nothing to compute, and the bytes stay as they are.
    """
    if len(data) < 128 + 32:
        return data
    data = bytearray(data)
    (manifest,) = struct.unpack_from("<Q", data, 24)
    table, trailer, entries = struct.unpack_from("<3Q", data, 40)
    if not (
        128 + manifest <= len(data) and table <= trailer <= len(data) - 32 and entries * 64 == trailer - table
    ):
        return bytes(data)
    for at in range(table, trailer, 64):
        _, position, stored = struct.unpack_from("<QQI", data, at)
        data[at + 32 : at + 64] = blake3(data[position : position + stored]).digest()
    data[-32:] = blake3(data[: 128 + manifest] + data[table:-32]).digest()
    return bytes(data)


def stored_file(path: Path) -> dict[str, int]:
    """The numbers of a sound file's header."""
    names = ("nbytes", "manifest", "data", "table", "trailer", "entries")
    return dict(zip(names, struct.unpack_from("<6Q", path.read_bytes(), 16), strict=True))


def thawed(snapshot: Snapshot, index: int = 0) -> LinearMemory:
    """A memory of the snapshot in a range of its own."""
    size = snapshot.manifest.memories[index].size
    memory = LinearMemory(size, reserve=max(size, PAGE), guard=0)
    snapshot.map_into(index, memory.address)
    return memory
