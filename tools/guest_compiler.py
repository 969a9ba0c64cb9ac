"""Compile guests with the C compiler of the pinned ziglang wheel: no other toolchain, the same bytes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SDK = ROOT / "sdk" / "c"

WASI = "wasm32-wasi"
BARE32 = "wasm32-freestanding"
BARE64 = "wasm64-freestanding"
"""Zig's wasm64 has no C library: a memory64 guest is built without one."""

FLAGS = (
    "-O2",
    "-s",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-g0",
    "-fno-ident",
    "-ffile-prefix-map=" + str(ROOT) + "=.",
)


class CompileError(Exception):
    """The compiler refused; the message is what it said."""


def compile_guest(
    sources: Sequence[Path], out: Path, *, target: str = WASI, flags: Sequence[str] = (), language: str = "cc"
) -> Path:
    """Compile C sources to a Wasm module.

    Args:
        sources: C (or, with language "c++", C++) files.
        out: the module to write.
        target: one of `WASI`, `BARE32`, `BARE64`. The bare ones have no C library and no `main`:
            they export what is marked with `export_name`.
        flags: more compiler flags; they come last.
        language: "cc" or "c++".

    Raises:
        CompileError: the compiler said no.
    """
    bare = () if target == WASI else ("-nostdlib", "-Wl,--no-entry")
    command = [sys.executable, "-m", "ziglang", language, f"--target={target}", "-I", str(SDK)]
    command += [*FLAGS, *bare, *flags, *map(str, sources), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompileError(f"{' '.join(command)}\n{done.stderr}")
    return out
