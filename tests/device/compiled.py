"""Shared libraries that tests compile: each content once, whichever process needs it first."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

KEPT = Path(__file__).parents[2] / "build" / "tests"
"""`make clean` removes it."""
FIBERS = Path(__file__).parent / "fibers.hpp"
"""How the emulated GPUs run a group's threads."""
NO_FORTIFICATION = "-U_FORTIFY_SOURCE"
"""Where compilers define it unasked, it would take a fiber's _longjmp for an attack."""


def shared_library(
    name: str, compiler: Sequence[str], flags: Sequence[str], files: Mapping[str, str], main: str
) -> Path:
    """The library `name` that a compiler makes of `main`, one of `files`, which are in its working directory.

    What decides its content names the folder that it is kept in. Other processes wait for the one that
    compiles.

    Raises:
        subprocess.CalledProcessError: the compiler said no; `stderr` has its words.
    """
    asked = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True)
    content = repr((name, asked.stdout, flags, main, sorted(files.items())))
    folder = KEPT / f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / name
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            with tempfile.TemporaryDirectory(dir=folder) as work:
                for file, text in files.items():
                    path = Path(work, file)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(text)
                command = [*compiler, main, *flags, "-o", "library"]
                subprocess.run(command, cwd=work, capture_output=True, text=True, check=True)
                os.replace(Path(work, "library"), library)
    return library
