"""What a snapshot file costs beside the disk itself, in the present folder; by bytes that a memory holds.

write    hashing, writing, fsync, publishing      beside writing the same bytes and fsync
verify   reading and hashing every page           beside reading the file; both from the page cache
thaw     opening without verification, mapping    beside reading the pages into the memory
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from nocopy.bench.machine import memory_bytes
from nocopy.bench.result import Row, row
from nocopy.bench.runner import Progress, silent
from nocopy.bench.timing import interleaved
from nocopy.memory.linear import LinearMemory
from nocopy.snapshot.fill import fill
from nocopy.snapshot.manifest import Manifest, MemoryState
from nocopy.snapshot.read import open_snapshot
from nocopy.snapshot.write import write_snapshot

SIZES = (1 << 24, 1 << 27, 1 << 30)
SECONDS = 12.0  # for writing one size; disks are uneven
STEP = 8 << 20
"""Bytes of one plain write or read."""


def rows(*, progress: Progress = silent) -> list[Row]:
    """Measure 16 MiB, 128 MiB and 1 GiB of noise, which no disk can make smaller."""
    sizes = [n for n in SIZES if n <= memory_bytes() // 8]
    found: list[Row] = []
    with TemporaryDirectory(prefix="nocopy-bench-", dir=".") as folder:
        for i, nbytes in enumerate(sizes):
            progress(f"{nbytes >> 20} MiB", i / len(sizes))
            with LinearMemory(nbytes, reserve=nbytes, guard=0) as memory:
                noise = np.random.default_rng(0)
                words = memory.view(nbytes // 4, "i32").numpy()
                words[:] = noise.integers(-(2**31), 2**31, nbytes // 4, np.int32)
                del words
                found += _of(memory, Path(folder))
    return found


def _of(memory: LinearMemory, folder: Path) -> list[Row]:
    case, path = f"{memory.size >> 20} MiB", folder / "snapshot"
    view = memoryview((ctypes.c_ubyte * memory.size).from_address(memory.address)).cast("B")
    manifest = Manifest("guest", (MemoryState(memory.size),))

    def write() -> Callable[[], None]:
        write_snapshot(path, manifest, [memory])
        return path.unlink

    times = interleaved({"ours": write, "disk": lambda: _write_plainly(folder, view)}, seconds=SECONDS)
    gigabytes = memory.size / 1e9
    speeds = {name: gigabytes / seconds for name, seconds in times.items()}
    found = [row(f"write {case}", speeds["ours"], "GB/s", "write and fsync", speeds["disk"])]
    write_snapshot(path, manifest, [memory])
    target = LinearMemory(memory.size, reserve=memory.size, guard=0)
    ctypes.memset(target.address, 1, target.size)  # so that reading need not make pages
    times = interleaved(
        {
            "verify": lambda: open_snapshot(path).close(),
            "read": lambda: _read_plainly(path, target),
            "thaw": lambda: _thaw(path, memory.size),
        },
        seconds=SECONDS / 4,
    )
    target.close()
    path.unlink()
    found.append(
        row(f"verify {case}", gigabytes / times["verify"], "GB/s", "read", gigabytes / times["read"])
    )
    found.append(row(f"thaw {case}", times["thaw"] * 1e6, "us", "read", times["read"] * 1e6))
    return found


def _write_plainly(folder: Path, view: memoryview) -> Callable[[], None]:
    """As fast as the disk is: large writes, one fsync."""
    path = folder / "plain"
    file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    try:
        for at in range(0, len(view), STEP):
            left = view[at : at + STEP]
            while left:
                left = left[os.write(file, left) :]
        os.fsync(file)
    finally:
        os.close(file)
    return path.unlink


def _read_plainly(path: Path, target: LinearMemory) -> None:
    view = memoryview((ctypes.c_ubyte * target.size).from_address(target.address)).cast("B")
    file = os.open(path, os.O_RDONLY)
    try:
        for at in range(0, target.size, STEP):
            fill(str(path), file, view[at : at + STEP], at)
    finally:
        os.close(file)


def _thaw(path: Path, size: int) -> Callable[[], None]:
    memory = LinearMemory(size, reserve=size, guard=0)
    with open_snapshot(path, verify="off") as snapshot:
        snapshot.map_into(0, memory.address)
    return memory.close
