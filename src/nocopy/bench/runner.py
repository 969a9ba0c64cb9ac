"""The list of benchmarks, and how one is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

from nocopy.bench.machine import describe
from nocopy.bench.result import Result, Row
from nocopy.device.discovery import open_device
from nocopy.device.protocol import Device
from nocopy.errors import UsageError

Progress = Callable[[str, float], None]
"""Called with what is being measured and how much is done, 0 to 1."""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark. Its module has `rows(device, progress)`, or `rows(progress)` if it needs no device."""

    module: str
    summary: str
    needs_device: bool = True
    chart: str = ""
    """What a picture of it shows on its y axis; "" if a picture would show nothing."""


BENCHMARKS = {
    "hostcall": Benchmark(
        "nocopy.bench.hostcall",
        "a call between guest and host, beside wasmtime-py's ordinary one",
        needs_device=False,
    ),
    "roundtrip": Benchmark(
        "nocopy.bench.roundtrip",
        "guest, device and back, beside a host that copies",
        chart="one round trip, µs",
    ),
    "share": Benchmark(
        "nocopy.bench.share",
        "making memory reachable for a device, beside copying it there",
        chart="once, µs",
    ),
    "guest_decode": Benchmark(
        "nocopy.bench.guest_decode", "generating from inside a guest, beside the same engine from Python"
    ),
    "wasinn": Benchmark(
        "nocopy.bench.wasinn",
        "an ONNX model through wasi-nn, beside ONNX Runtime in Python and a host that copies",
        needs_device=False,
    ),
    "matmul": Benchmark("nocopy.bench.matmul", "matrix products, beside NumPy's on the same pages"),
    "snapshot": Benchmark(
        "nocopy.bench.snapshot",
        "freezing and thawing a conversation, beside the disk and beside reading it again",
        chart="once, ms",
    ),
    "open": Benchmark("nocopy.bench.open", "opening a model of 2.5 GB, beside reading it into memory"),
    "decode": Benchmark("nocopy.bench.decode", "a language model token by token, beside llama.cpp"),
    "snapshot_file": Benchmark(
        "nocopy.bench.snapshot_file",
        "writing, verifying and thawing snapshot files, beside the disk itself",
        needs_device=False,
    ),
    "batch": Benchmark("nocopy.bench.batch", "1 to 8 sequences of a language model, beside one at a time"),
    "sample": Benchmark("nocopy.bench.sample", "drawing a token on the device, beside NumPy on the host"),
    "prefill": Benchmark("nocopy.bench.prefill", "a language model reading a prompt, beside llama.cpp"),
}


def silent(what: str, done: float) -> None:
    """The progress of a benchmark that nobody watches."""
    del what, done


def run(name: str, device: str = "auto", *, progress: Progress = silent) -> Result:
    """Run a benchmark.

    Args:
        name: a key of `BENCHMARKS`.
        device: as `open_device` takes it; a benchmark that needs none does not open it.
        progress: called as it goes.

    Raises:
        UsageError: there is no such benchmark or device.
        DeviceUnavailableError: the device is not on this machine.
    """
    if name not in BENCHMARKS:
        raise UsageError(f"benchmark {name!r} was asked for; there are {', '.join(BENCHMARKS)}")
    benchmark = BENCHMARKS[name]
    rows: Callable[..., Sequence[Row]] = import_module(benchmark.module).rows
    if not benchmark.needs_device:
        return Result(name, "none", describe(), rows(progress=progress))
    opened = open_device(device)
    try:
        return measure(name, rows, opened, progress)
    finally:
        opened.close()


def measure(name: str, rows: Callable[..., Sequence[Row]], device: Device, progress: Progress) -> Result:
    """Run it on a device that is open."""
    measured = rows(device, progress=progress)
    return Result(name, device.info.name, describe(device.info), measured)
