"""`nocopy completion`: the completion script of a shell."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

Shell = Literal["bash", "zsh", "fish", "powershell"]


def completion(
    shell: Annotated[Shell | None, Parameter(help="Which shell; the one you are in when left out.")] = None,
    /,
    *,
    install: Annotated[
        bool, Parameter(help="Install it where that shell looks, and load it when it starts.")
    ] = False,
) -> int:
    """Print or install the completion script of a shell."""
    from cyclopts.completion import detect_shell
    from cyclopts.completion.detect import ShellDetectionError

    from nocopy.cli.app import app
    from nocopy.errors import UsageError

    if shell is None:
        try:
            shell = detect_shell()
        except ShellDetectionError as e:
            raise UsageError(
                "a completion script was asked for; the shell could not be recognised. "
                "Name it: nocopy completion bash (or zsh, fish, powershell)"
            ) from e
    if install:
        path: Path = app.install_completion(shell=shell)
        print(f"Installed {path}. Open a new {shell} to use it.", file=sys.stderr)
    else:
        sys.stdout.write(app.generate_completion(shell=shell) + "\n")
    return 0
