"""Opening a model of 2.5 GB: the time until its first pass could be played, and how resident memory grows.

Beside reading the file into memory of one's own, as a host does that loads its weights. A device that has
memory of its own uploads them while opening.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from time import perf_counter

from nocopy.bench.llama import model_file, tokens
from nocopy.bench.result import Row, row
from nocopy.bench.runner import Progress, silent
from nocopy.bench.timing import interleaved
from nocopy.device.protocol import Device
from nocopy.memory.dtype import DType
from nocopy.memory.linear import LinearMemory
from nocopy.models.ggml import GGMLType
from nocopy.models.load import open_model
from nocopy.prove.residency import resident_bytes
from nocopy.session.engine import Engine
from nocopy.session.own import OwnSession

CONTEXT = 512
SECONDS = 10.0
MIB = 1 << 20


def rows(device: Device, *, progress: Progress = silent) -> list[Row]:
    """Time opening in ms, growth in MiB, each beside reading the file; then what the first token takes."""
    progress("the model", 0.0)
    path = model_file(GGMLType.BF16)
    progress("opening", 0.2)
    times = interleaved({"open": lambda: _open(path, device), "read": lambda: _read(path)}, seconds=SECONDS)
    before = resident_bytes()
    close = _read(path)
    read = resident_bytes() - before
    close()
    before = resident_bytes()
    with _opened(path, device) as session:
        opened = resident_bytes() - before
        progress("the first token", 0.9)
        start = perf_counter()
        session.append(tokens(1))
        first = perf_counter() - start
        start = perf_counter()
        session.append(tokens(1))
        second = perf_counter() - start
    return [
        row("to the first tape", 1e3 * times["open"], "ms", "reading the file", 1e3 * times["read"]),
        row("resident memory", max(opened, 1) / MIB, "MiB", "reading the file", read / MIB),
        row("first token", 1e3 * first, "ms", "the second", 1e3 * second),
    ]


@contextmanager
def _opened(path: Path, device: Device) -> Generator[OwnSession]:
    """A session of the model whose pass over one token is recorded, validated and compiled."""
    with ExitStack() as stack:
        model = stack.enter_context(closing(open_model(path)))
        engine = stack.enter_context(closing(Engine(model, device)))
        session = stack.enter_context(OwnSession(engine, context=CONTEXT, kv=DType.F16))
        engine.compile(engine.tape(session.region, 1, logits=True), session.pages, session.near).close()
        yield session


def _open(path: Path, device: Device) -> Callable[[], object]:
    stack = ExitStack()
    stack.enter_context(_opened(path, device))
    return stack.close


def _read(path: Path) -> Callable[[], object]:
    nbytes = -(-path.stat().st_size // 65536) * 65536
    memory = LinearMemory(nbytes, reserve=nbytes, guard=0)
    with path.open("rb", buffering=0) as file:
        view, done = memoryview(memory.buffer()), 0
        while count := file.readinto(view[done : done + (1 << 30)]):
            done += count
    return memory.close
