"""Break GGUF files in every way that comes to mind and open them: `python tools/fuzz_gguf.py --cases 100000`.

A case is a valid file with something broken: bytes flipped, cut off, put in or moved, or one field of the
format set to a value that hurts. Opening it must succeed or raise `nocopy.errors.Error`; anything else, a
crash, more than two seconds or more memory than twice the file is a failure. Case N is the same on every
machine: `--only N` repeats it.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import struct
import sys
import tempfile
import time
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nocopy.errors import Error, ModelFileError
from nocopy.models.ggml import GGMLType
from nocopy.models.gguf import open_gguf
from nocopy.models.gguf_format import SCALARS, ValueType
from nocopy.models.gguf_writer import TensorData, write_gguf
from nocopy.models.tokenizer_gguf import load_gguf_tokenizer

FIXED_BYTES = 32 * 1024
"""What opening the smallest file takes: paths, dicts, the error and its traceback."""
SLOWEST = 2.0
SHARES = (30, 30, 20, 17, 3)
TRACE_EVERY = 25
CHUNK = 1000
HURTFUL = (
    0,
    1,
    2,
    3,
    7,
    8,
    9,
    12,
    13,
    31,
    33,
    127,
    255,
    65535,
    2**16,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
)
HURTFUL_64 = (2**40, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 64, 2**64 - 8, 2**64 - 1)


@dataclass(frozen=True)
class Field:
    """Where a number of the format lies in a valid file."""

    kind: str
    offset: int
    width: int


@dataclass
class Outcome:
    """What a run of cases found."""

    cases: int = 0
    opened: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    worst_seconds: float = 0.0
    worst_seconds_case: int = -1
    traced_cases: int = 0
    worst_allocation_ratio: float = 0.0
    worst_allocation_case: int = -1
    failures: list[str] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        """Take in the outcome of further cases."""
        self.cases += other.cases
        self.opened += other.opened
        self.traced_cases += other.traced_cases
        self.failures += other.failures
        for kind, count in other.refused.items():
            self.refused[kind] = self.refused.get(kind, 0) + count
        if other.worst_seconds > self.worst_seconds:
            self.worst_seconds, self.worst_seconds_case = other.worst_seconds, other.worst_seconds_case
        if other.worst_allocation_ratio > self.worst_allocation_ratio:
            self.worst_allocation_ratio = other.worst_allocation_ratio
            self.worst_allocation_case = other.worst_allocation_case


def valid_files(folder: Path) -> list[bytes]:
    """Valid files: every value and tensor type, a vocabulary, weights, nested arrays, and many strings.

    The last is large, so that memory shows, and therefore slow: `SHARES` says how often each is broken.
    """
    rng = np.random.default_rng(1)
    kinds = (GGMLType.F32, GGMLType.F16, GGMLType.BF16, GGMLType.Q8_0, GGMLType.Q4_0)
    tensors = [
        TensorData.of(f"blk.{i}.w", rng.standard_normal((3, 64), np.float32), t) for i, t in enumerate(kinds)
    ]
    quantised = (GGMLType.Q4_K, GGMLType.Q5_K, GGMLType.Q6_K)
    tensors += [
        TensorData(t.name, t, (2, 256), rng.integers(0, 256, 2 * t.block_nbytes, np.uint8)) for t in quantised
    ]
    scalars = {
        f"v.{t.__name__}": t(1)
        for t in (np.uint8, np.int8, np.uint16, np.int16, np.int32, np.uint64, np.int64)
    }
    values: dict[str, object] = {
        "general.architecture": "llama",
        "general.alignment": 64,
        "v.text": "grün 🦙",
    }
    values |= scalars | {"v.double": np.float64(0.5), "v.on": True, "v.flags": np.array([True, False, True])}
    values |= {"v.many": np.arange(9), "llama.block_count": 2}
    letters = [
        chr(c) for c in (*range(33, 127), *range(0xA1, 0xAD), *range(0xAE, 0x100), *range(0x100, 0x144))
    ]
    words = letters + [a + b for a in letters[40:60] for b in letters[40:60]]
    vocabulary: dict[str, object] = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.token_type": np.ones(len(words), np.int32),
        "tokenizer.ggml.merges": [f"{a} {b}" for a in letters[40:60] for b in letters[40:60]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.chat_template": "{{ messages }}" * 20,
    }
    weights = [TensorData.of(f"w{i}", np.zeros((64, 64), np.float32), GGMLType.Q8_0) for i in range(8)]
    files: list[bytes] = []
    for number, (metadata, content) in enumerate(
        ((values, tensors), (vocabulary, tensors[:1]), (values, weights))
    ):
        path = folder / f"valid{number}.gguf"
        alignment = 64 if "general.alignment" in metadata else 32
        write_gguf(path, metadata, content, alignment=alignment)
        files.append(path.read_bytes())
    path = folder / "large.gguf"
    many = [f"word{i}" for i in range(8000)]
    write_gguf(path, {"general.architecture": "llama", "tokenizer.ggml.tokens": many}, tensors)
    return [*files, _with_nested_arrays(), path.read_bytes()]


def _with_nested_arrays() -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    numbers = struct.pack("<IQ3i", 5, 3, 1, 2, 3)
    strings = struct.pack("<IQ", 8, 2) + text("a") + text("bc")
    deeper = struct.pack("<IQ", 9, 2) + numbers + strings
    value = struct.pack("<IIQ", 9, 9, 3) + numbers + strings + deeper
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("nested") + value


class FieldWalk:
    """Finds the fields of a valid file. It trusts the file and is no reader."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.fields = data, 4, [Field("magic", 0, 4)]
        self.number("version", 4)
        tensors, keys = self.number("tensor count", 8), self.number("key count", 8)
        for _ in range(keys):
            self.text("key length")
            self.value(self.number("value type", 4))
        for _ in range(tensors):
            self.text("name length")
            for _ in range(self.number("dimensions", 4)):
                self.number("dimension", 8)
            self.number("tensor type", 4)
            self.number("tensor offset", 8)
        self.header = self.at

    def number(self, kind: str, width: int) -> int:
        """Note a field and return its value."""
        self.fields.append(Field(kind, self.at, width))
        self.at += width
        return int.from_bytes(self.data[self.at - width : self.at], "little")

    def text(self, kind: str) -> None:
        """Note a string's length and its first characters."""
        length = self.number(kind, 8)
        self.fields.append(Field("text", self.at, max(1, min(length, 8))))
        self.at += length

    def value(self, kind: int) -> None:
        """Note the fields of a value."""
        if kind == 8:
            self.text("string length")
        elif kind == 9:
            element, count = self.number("element type", 4), self.number("element count", 8)
            for _ in range(count):
                self.value(element)
        else:
            self.number("scalar", SCALARS[ValueType(kind)].size)


def mutate(data: bytes, walk: FieldWalk, rng: random.Random) -> bytes:
    """Break a valid file in one to three ways."""
    raw = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        rng.choice(MUTATIONS)(raw, walk, rng)
    return bytes(raw)


def _set_field(raw: bytearray, walk: FieldWalk, rng: random.Random) -> None:
    kinds = sorted({entry.kind for entry in walk.fields})
    kind = rng.choice(kinds)
    entry = rng.choice([entry for entry in walk.fields if entry.kind == kind])
    old = int.from_bytes(raw[entry.offset : entry.offset + entry.width], "little")
    candidates = (
        *HURTFUL,
        *HURTFUL_64,
        old + 1,
        old - 1,
        old * 2,
        old ^ (1 << rng.randrange(64)),
        len(raw),
        rng.getrandbits(64),
    )
    value = rng.choice(candidates) % (1 << (8 * entry.width))
    raw[entry.offset : entry.offset + entry.width] = value.to_bytes(entry.width, "little")


def _copy_field(raw: bytearray, walk: FieldWalk, rng: random.Random) -> None:
    """Put one field's value into another of its kind: duplicate names, overlapping tensors."""
    entry = rng.choice(walk.fields)
    other = rng.choice([f for f in walk.fields if (f.kind, f.width) == (entry.kind, entry.width)])
    raw[entry.offset : entry.offset + entry.width] = raw[other.offset : other.offset + other.width]


def _flip(raw: bytearray, walk: FieldWalk, rng: random.Random) -> None:
    end = len(raw) if rng.random() < 0.2 else min(len(raw), walk.header)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        if end:
            raw[rng.randrange(end)] ^= 1 << rng.randrange(8)


def _truncate(raw: bytearray, walk: FieldWalk, rng: random.Random) -> None:
    del raw[
        rng.randrange(len(raw) + 1) if rng.random() < 0.5 else min(len(raw), rng.randrange(walk.header)) :
    ]


def _inflate(raw: bytearray, _walk: FieldWalk, rng: random.Random) -> None:
    at = rng.choice((len(raw), rng.randrange(len(raw) + 1)))
    raw[at:at] = rng.choice((bytes(rng.randrange(4096)), rng.randbytes(rng.randrange(256)), b"\xff" * 64))


def _move(raw: bytearray, _walk: FieldWalk, rng: random.Random) -> None:
    if len(raw) > 64:
        size, one, two = rng.randrange(1, 32), rng.randrange(len(raw) - 32), rng.randrange(len(raw) - 32)
        raw[one : one + size] = raw[two : two + size]


MUTATIONS = (_set_field, _set_field, _set_field, _copy_field, _flip, _truncate, _inflate, _move)


def exercise(path: Path, tokenizer: bool) -> None:
    """Open a file and touch everything in it."""
    model = open_gguf(path)
    for value in model.metadata.values():
        if hasattr(value, "__iter__") and not isinstance(value, str):
            for _ in value:  # pyright: ignore[reportGeneralTypeIssues]
                pass
    for name, weight in model.weights.items():
        raw = model.weights.raw(name)
        assert raw.size == weight.nbytes, f"{name} has {raw.size} bytes and states {weight.nbytes}"
        assert 0 <= int(raw[0]) + int(raw[-1]) <= 510
    if tokenizer:
        load_gguf_tokenizer(model.metadata)


def run_chunk(seed: int, start: int, count: int, folder: str) -> Outcome:
    """Run cases `start` to `start + count`."""
    files = valid_files(Path(folder))
    walks = [FieldWalk(data) for data in files]
    outcome, path = Outcome(), Path(folder) / f"case{start}.gguf"
    for case in range(start, start + count):
        rng = random.Random(seed * 1_000_003 + case)
        which = rng.choices(range(len(files)), SHARES)[0]
        data = mutate(files[which], walks[which], rng)
        path.write_bytes(data)
        run_case(path, case, len(data), outcome)
    path.unlink(missing_ok=True)
    return outcome


def run_case(path: Path, case: int, size: int, outcome: Outcome) -> None:
    """Open one file and judge what happened."""
    traced = case % TRACE_EVERY == 0
    if traced:
        tracemalloc.start(1)
    start = time.perf_counter()
    try:
        exercise(path, tokenizer=not traced and case % 10 == 1)
        outcome.opened += 1
    except Error as error:
        kind = error.kind if isinstance(error, ModelFileError) else type(error).__name__
        outcome.refused[kind] = outcome.refused.get(kind, 0) + 1
    except Exception as error:
        outcome.failures.append(f"case {case}: {type(error).__name__}: {error}")
    seconds = time.perf_counter() - start
    outcome.cases += 1
    if traced:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        outcome.traced_cases += 1
        ratio = max(0, peak - FIXED_BYTES) / max(1, size)
        if ratio > outcome.worst_allocation_ratio:
            outcome.worst_allocation_ratio, outcome.worst_allocation_case = ratio, case
        if ratio > 2:
            outcome.failures.append(f"case {case}: {peak} bytes for a file of {size}")
    elif seconds > outcome.worst_seconds:
        outcome.worst_seconds, outcome.worst_seconds_case = seconds, case
        if seconds > SLOWEST:
            outcome.failures.append(f"case {case}: {seconds:.1f} s")


def run(seed: int, cases: int) -> Outcome:
    """Run cases in a process of their own, so that a crash is a failure like any other."""
    outcome = Outcome()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(max_workers=1) as pool:
        for first in range(0, cases, CHUNK):
            try:
                outcome.add(pool.submit(run_chunk, seed, first, min(CHUNK, cases - first), folder).result())
            except BrokenProcessPool:
                outcome.failures.append(f"the process crashed in case {first} to {first + CHUNK - 1}")
                break
    outcome.seconds = time.perf_counter() - start
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="run this one case, here, with its traceback")
    parser.add_argument("--output", type=Path, help="write the outcome as JSON")
    options = parser.parse_args()
    if options.only is not None:
        with tempfile.TemporaryDirectory() as folder:
            print(run_chunk(options.seed, options.only, 1, folder))
        return 0
    outcome = run(options.seed, options.cases)
    report: dict[str, Any] = asdict(outcome) | {
        "seed": options.seed,
        "fixed_bytes": FIXED_BYTES,
        "allocation_ratio": "(peak - fixed_bytes) / file size, while opening and walking every value",
        "machine": f"{platform.machine()} {platform.system()} Python {platform.python_version()}",
    }
    text = json.dumps(report, indent=2, sort_keys=True)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    sys.exit(main())
