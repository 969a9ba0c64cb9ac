"""What a person types, or a pipe holds, one message at a time; the history of it in a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

QUOTE: Final = '"""'
"""Begins and ends a message of several lines, as in ollama. A backslash at the end of a line also goes on."""
PROMPT: Final = ">>> "
MORE: Final = "... "
HISTORY: Final = 1000  # lines


def history_file() -> Path:
    """The history's place: nocopy/chat_history under $XDG_STATE_HOME, which is ~/.local/state if not set."""
    base = os.environ.get("XDG_STATE_HOME", "")
    state = Path(base) if os.path.isabs(base) else Path.home() / ".local" / "state"
    return state / "nocopy" / "chat_history"


def read_message(*, ask: bool) -> str:
    """The next message; lines are joined where one goes on.

    Args:
        ask: show a prompt, for people.

    Raises:
        EOFError: nothing follows.
        UsageError: stdin is not UTF-8.
    """
    line = _line(PROMPT if ask else "")
    if line.lstrip().startswith(QUOTE):
        text = line.lstrip().removeprefix(QUOTE)
        while not text.rstrip().endswith(QUOTE):
            text += "\n" + _line(MORE if ask else "")
        return text.rstrip().removesuffix(QUOTE).strip("\n")
    while line.endswith("\\"):
        line = line[:-1] + "\n" + _line(MORE if ask else "")
    return line.strip()


def _line(prompt: str) -> str:
    from nocopy.errors import UsageError

    if not sys.stdout.isatty():  # input() would write it among the answers
        sys.stderr.write(prompt)
        sys.stderr.flush()
        prompt = ""
    try:
        return input(prompt)
    except UnicodeDecodeError as error:
        raise UsageError(f"stdin was read; it is not UTF-8 text: {error.reason}") from error


@contextmanager
def line_editing(*, history: bool) -> Generator[None]:
    """Edit lines with arrow keys while the block runs; remember them in `history_file`, which only its owner
    can read.
    """
    try:
        import readline
    except ImportError:  # a Python without it: the terminal's own editing stays
        yield
        return
    path = history_file()
    if not history:
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        readline.read_history_file(path)
    except OSError as error:
        sys.stderr.write(f"The history {path} cannot be read: {error.strerror}. Going on without it.\n")
        yield
        return
    readline.set_history_length(HISTORY)
    try:
        yield
    finally:
        try:
            readline.write_history_file(path)
        except OSError as error:
            sys.stderr.write(f"The history {path} cannot be written: {error.strerror}.\n")
