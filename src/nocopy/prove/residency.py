"""How much resident memory a tensor costs beyond itself, when it is shared and when it is copied.

Each figure comes from a fresh process, so that nothing that ran before has warmed or fragmented it. The
process opens the device, runs the same program on a small tensor (which loads kernels and starts threads),
notes its resident size, has the guest make and compute a tensor of 16 MiB, and notes the difference.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

from nocopy.bench.copying import CopyingHost, HostCarrier
from nocopy.bench.roundtrip import check, open_copying, open_sharing, prepare, trip
from nocopy.device.discovery import open_device
from nocopy.errors import DeviceError
from nocopy.wasm import Guest

TENSOR_BYTES = 16 << 20
SMALL_BYTES = 64 << 10
ROUNDS = 3


def residency(device: str, way: str, *, allow_copy: bool = False) -> int:
    """Measure in a fresh process.

    Args:
        device: its name.
        way: "shared" or "copied".
        allow_copy: as `open_device` takes it.

    Returns:
        Bytes by which resident memory grew, less the tensor's own.

    Raises:
        DeviceError: the process failed; the message has its last words.
    """
    command = [sys.executable, "-m", "nocopy.prove.residency", device, way, str(int(allow_copy))]
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, check=False
    )
    if done.returncode:
        words = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
        raise DeviceError(f"resident memory was to be measured on {device} ({way}); {words[0]}")
    return int(json.loads(done.stdout))


def resident_bytes() -> int:
    """Bytes of this process that are in memory now."""
    if sys.platform == "darwin":
        from nocopy.prove.darwin import resident_bytes as of_the_task

        return of_the_task()
    # smaps_rollup is exact; statm, which every Linux has, lags by up to 64 pages for each core since 6.2.
    exact = Path("/proc/self/smaps_rollup")
    lines = exact.read_text().splitlines() if exact.exists() else []
    for line in lines:
        if line.startswith("Rss:"):
            return int(line.split()[1]) << 10
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def measure(device_name: str, way: str, *, allow_copy: bool) -> int:
    """What the fresh process does."""
    with ExitStack() as stack:
        device = stack.enter_context(closing(open_device(device_name, allow_copy=allow_copy)))
        if way == "shared":
            guest = stack.enter_context(open_sharing(device))
            return _growth(guest, lambda _nbytes: None)
        host = stack.enter_context(closing(CopyingHost(device)))
        guest = stack.enter_context(open_copying(host))
        return _growth(guest, lambda nbytes: host.hold(HostCarrier(device, nbytes), nbytes))


def _growth(guest: Guest, ready: Callable[[int], None]) -> int:
    """Compute a small tensor, then one of `TENSOR_BYTES`; bytes that the second cost beyond itself."""
    _compute(guest, SMALL_BYTES, ready)
    gc.collect()
    before = resident_bytes()
    _compute(guest, TENSOR_BYTES, ready)
    return resident_bytes() - before - (TENSOR_BYTES - SMALL_BYTES)


def _compute(guest: Guest, nbytes: int, ready: Callable[[int], None]) -> None:
    prepare(guest, nbytes)
    ready(nbytes)
    round_trip = trip(guest)
    for _ in range(ROUNDS):
        round_trip()
    check("resident memory", guest, nbytes)


if __name__ == "__main__":
    _device, _way, _allow_copy = sys.argv[1:]
    sys.stdout.write(json.dumps(measure(_device, _way, allow_copy=_allow_copy == "1")))
