"""The command line: `nocopy VERB`. One module for each verb; each imports what it needs when it runs.

Nothing imports this package. It uses the public API only.
The invariant: a user's mistake ends in one `error:` line and a status from `status`, never in a traceback.
"""

from __future__ import annotations

import sys


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status. See `status` for what each one means."""
    tokens = sys.argv[1:] if argv is None else argv
    if tokens == ["--version"]:  # the one call that scripts make often: it imports nothing else
        print(version())
        return 0
    try:
        from nocopy.cli.entry import enter

        return enter(tokens)
    except KeyboardInterrupt:  # while that import ran; from there on `enter` answers it
        return 130


def version() -> str:
    """What `--version` prints."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"nocopy {version('nocopy')}"
    except PackageNotFoundError:
        return "nocopy (run from its source tree, not installed)"
