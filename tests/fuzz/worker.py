"""One fuzzing process for one device: `python -m tests.fuzz.worker`. `tools/fuzz.py` reads its progress.

Coverage-guided by atheris, which watches the validator, the reference and the generator of records; without
atheris the bytes are random.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from inspect import isclass, isfunction
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Protocol

from nocopy.device.discovery import open_device
from nocopy.tape import reference
from tests.fuzz.target import Target, noise
from tests.tape import generator

validator = sys.modules["nocopy.tape.validate"]  # the package has a function of that name

LAST = "last.tape"
PROGRESS = "progress.json"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, required=True, help="corpus, progress and the last tape played"
    )
    return parser.parse_args()


def main() -> None:
    args = parse()
    (args.folder / "corpus").mkdir(parents=True, exist_ok=True)
    guided = importlib.util.find_spec("atheris") is not None
    with (args.folder / LAST).open("wb") as last:

        def note(tape: bytes) -> None:
            # The file's pages outlive the process, whatever ends it.
            last.seek(0)
            last.write(struct.pack("<I", len(tape)) + tape)
            last.flush()

        device = open_device(args.device, allow_copy=True)
        targets: list[Runner] = [Target(device, note)]
        if importlib.util.find_spec("wasmtime"):
            from tests.fuzz.guest import GuestTarget

            targets.append(GuestTarget(device, note))
        run = reporting(targets, args.folder / PROGRESS, "atheris" if guided else "random")
        if guided:
            import atheris

            # Not by its import hook: that loses the code of packages installed editable.
            for function in functions(validator, reference, generator):
                atheris.instrument_func(function)
            options = [
                f"-max_total_time={int(args.seconds)}",
                f"-seed={args.seed + 1}",
                "-timeout=60",
                "-handle_segv=0",
            ]
            options += ["-max_len=1024", "-len_control=0", "-rss_limit_mb=8192", "-print_final_stats=0"]
            options += [f"-artifact_prefix={args.folder}/", str(args.folder / "corpus")]
            atheris.Setup([sys.argv[0], *options], run, enable_python_coverage=True)
            atheris.Fuzz()
        end, seed = time.monotonic() + args.seconds, args.seed
        while time.monotonic() < end:
            run(noise(seed))
            seed += 1


def functions(*modules: ModuleType) -> Iterator[FunctionType]:
    """Every function and method that the modules define themselves."""
    for module in modules:
        for thing in vars(module).values():
            owner = vars(thing).values() if isclass(thing) else [thing]
            yield from (f for f in owner if isfunction(f) and f.__module__ == module.__name__)


class Runner(Protocol):
    """A target: what it has run, and how to run more."""

    executions: int
    accepted: int

    def from_bytes(self, data: bytes) -> None: ...


def reporting(targets: Sequence[Runner], path: Path, engine: str) -> Callable[[bytes], None]:
    """Give each input to the target that its first byte chooses; write the counts down once a second."""
    start = time.monotonic()
    due = 0.0

    def run(data: bytes) -> None:
        nonlocal due
        targets[data[0] % len(targets) if data else 0].from_bytes(data[1:])
        now = time.monotonic()
        if now >= due:
            due = now + 1
            counts = {
                "engine": engine,
                "seconds": round(now - start, 1),
                "executions": sum(t.executions for t in targets),
                "accepted": sum(t.accepted for t in targets),
                "from_guest": sum(t.executions for t in targets[1:]),
            }
            path.write_text(json.dumps(counts))

    return run


if __name__ == "__main__":
    main()
