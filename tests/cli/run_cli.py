"""Runs the real command line, as a shell would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nocopy


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its stdout, which has to be one JSON value and nothing else."""
        return json.loads(self.out)


def environment(**extra: str) -> dict[str, str]:
    """A user's environment, without what a test runner adds to it."""
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM")}
    return kept | {"PYTHONPATH": str(Path(nocopy.__file__).parent.parent), "TERM": "xterm-256color"} | extra


def nocopy_cli(
    *arguments: str, cwd: Path | None = None, timeout: float = 120, stdin: str = "", **env: str
) -> Done:
    """Run `nocopy ARGUMENTS...`."""
    done = subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=timeout,
        input=stdin,
        env=environment(**env),
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def command(*arguments: str) -> list[str]:
    """The command line of `nocopy ARGUMENTS...`."""
    return [sys.executable, "-m", "nocopy.cli", *arguments]
