"""What it costs to make memory reachable for a device, against copying it there; by size.

Sharing happens once, when a guest starts or grows. A host that copies pays for every tensor of every call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from nocopy.bench.copying import carriers
from nocopy.bench.machine import memory_bytes
from nocopy.bench.result import Row, row
from nocopy.bench.runner import Progress, silent
from nocopy.bench.timing import interleaved
from nocopy.device.protocol import Device
from nocopy.memory.linear import LinearMemory

SIZES = tuple(2**i for i in range(20, 31, 2))
SECONDS = 1.5  # for each size


def rows(device: Device, *, progress: Progress = silent) -> list[Row]:
    """Time `Device.share` of 1 MiB to 1 GiB beside one copy of as many bytes; the unit is µs."""
    sizes = [n for n in SIZES if n <= memory_bytes() // 8]
    found: list[Row] = []
    for i, nbytes in enumerate(sizes):
        progress(f"{nbytes >> 20} MiB", i / len(sizes))
        with LinearMemory(nbytes) as memory:
            ctypes.memset(memory.address, 1, nbytes)  # a page that nobody has touched is not there yet
            found += _compare(device, memory, nbytes)
    return found


def _compare(device: Device, memory: LinearMemory, nbytes: int) -> list[Row]:
    def share() -> Callable[[], None]:
        return device.share(memory.address, nbytes).close

    peers = carriers(device, nbytes)
    try:
        copies = {name: lambda c=c: c.put(memory.address, nbytes) for name, c in peers.items()}
        times = interleaved({"share": share, **copies}, seconds=SECONDS)
    finally:
        for carrier in peers.values():
            carrier.close()
    case = f"{nbytes >> 20} MiB"
    return [row(case, times["share"] * 1e6, "us", name, times[name] * 1e6) for name in peers]
