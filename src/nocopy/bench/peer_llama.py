"""llama.cpp as a peer: its own `llama-bench`, if this machine has it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from nocopy.bench.machine import cores
from nocopy.errors import UsageError

VARIABLE = "NOCOPY_LLAMA_BENCH"
"""Environment variable that says where it is; else it is looked for on PATH."""
TIMEOUT_S = 600


def find() -> str | None:
    """Where `llama-bench` is, if anywhere.

    Raises:
        UsageError: the environment names a file that cannot be run.
    """
    named = os.environ.get(VARIABLE)
    if named and not os.access(named, os.X_OK):
        raise UsageError(f"{VARIABLE} names '{named}'; there is no program. Correct it or unset it")
    return named or shutil.which("llama-bench")


def tokens_per_second(
    program: str, model: Path, *, prompt: int = 0, generate: int = 0, depth: int = 0, times: int = 3
) -> float:
    """Return the median of some runs on the CPU with as many threads as there are cores.

    Args:
        program: as `find` returns it.
        model: a GGUF file.
        prompt: tokens to prefill, or 0.
        generate: tokens to decode, or 0; one of the two.
        depth: tokens that it remembers before.
        times: runs, after its own warm-up.
    """
    options = {"t": cores(), "ngl": 0, "r": times, "p": prompt, "n": generate, "d": depth}
    return median(run(program, model, options)[0]["samples_ts"])


def run(program: str, model: Path, options: Mapping[str, object]) -> list[dict[str, Any]]:
    """Run it and return what it says of each test.

    Raises:
        UsageError: it failed; the message has the end of what it wrote.
    """
    command = [program, "-m", str(model), "-o", "json"]
    for name, value in options.items():
        command += [f"-{name}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    if done.returncode:
        said = " ".join(done.stderr.split()[-60:])
        raise UsageError(f"'{' '.join(command)}' was run; it failed with status {done.returncode}: {said}")
    return json.loads(done.stdout)
