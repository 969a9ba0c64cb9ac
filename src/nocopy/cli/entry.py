"""From tokens to an exit status: parses, runs the verb, and turns every ending into a status and one line."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence

from cyclopts import CycloptsError

from nocopy.cli.interrupt import end_on_interrupt
from nocopy.cli.status import Status, status_of
from nocopy.cli.tail import command_index, guest_index
from nocopy.errors import Error, ExitError

RUNNERS = ("run", "freeze")
"""Verbs after whose GUEST everything is the guest's."""
UNWRITABLE = (errno.ENOSPC, errno.EIO, errno.EBADF)


def enter(tokens: Sequence[str]) -> int:
    """Run a command line and return its exit status. Nothing escapes but what `--debug` prints."""
    open_standard_streams()
    own, guest = split(tokens)
    debug = "--debug" in own
    try:
        with end_on_interrupt(Status.INTERRUPTED):
            status = play(own, guest)
        sys.stdout.flush()
        return status
    except BaseException as error:  # the last stop: whatever ends the program has to become a status
        if debug and not isinstance(error, SystemExit | ExitError | BrokenPipeError):
            traceback.print_exc()
        return explain(error, debug)


def split(tokens: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """Part our tokens from the guest's. The second is None when there is no guest.

    Returns:
        (tokens up to and including GUEST, tokens after it)
    """
    at = command_index(tokens)
    if at is None or tokens[at] not in RUNNERS:
        return list(tokens), None
    rest = tokens[at + 1 :]
    guest = guest_index(rest, valued_options(tokens[at]))
    if guest is None:
        return list(tokens), None
    options = [t for t in rest[:guest] if t != "--"]
    return [*tokens[: at + 1], *options, rest[guest]], list(rest[guest + 1 :])


def valued_options(verb: str) -> set[str]:
    """The options of a verb that take a value, read from its signature."""
    from nocopy.cli.app import app

    arguments = app[verb].assemble_argument_collection()
    return {
        name
        for argument in arguments
        for name in argument.names
        if name.startswith("-") and argument.hint is not bool
    }


def play(own: list[str], guest: list[str] | None) -> int:
    """Parse and run."""
    from nocopy.cli.app import app
    from nocopy.cli.output import console, errors

    tokens = own if guest is None else [*own[:-1], "--", own[-1], *guest]
    result = app.meta(
        tokens,
        console=console(),
        error_console=errors(),
        print_error=False,
        exit_on_error=False,
        result_action="return_value",
    )
    return int(result or 0)


def explain(error: BaseException, debug: bool) -> int:
    """Say what went wrong on stderr, in one line where that is possible, and return the exit status."""
    status: int = Status.FAILURE
    said, more = str(error), ""
    match error:
        case SystemExit():
            status, said = (error.code if isinstance(error.code, int) else Status.OK), ""
        case KeyboardInterrupt():
            status, said = Status.INTERRUPTED, ""
        case BrokenPipeError():
            status, said = Status.BROKEN_PIPE, ""
            forget_stdout()
        case ExitError():
            status, said = status_of(error), ""
        case CycloptsError():
            status, more = (
                Status.USAGE,
                f"See `{' '.join(['nocopy', *(error.command_chain or ()), '--help'])}`.",
            )
        case Error():
            status, more = status_of(error), getattr(error, "backtrace", "")
        case OSError() if error.errno in UNWRITABLE and not error.filename:
            said = f"the output could not be written: {error.strerror}"
            forget_stdout()
        case _:
            said = f"this is a bug in nocopy: {type(error).__name__}: {error}"
            more = "" if debug else "Run the same with --debug to see where, and please report it."
    if said:
        complain(said, more)
    return status


def complain(message: str, more: str = "") -> None:
    """Print `error: message` to stderr, and what follows it on the next lines."""
    from rich.text import Text

    from nocopy.cli.output import errors

    text = Text.assemble(("error: ", "bold red"), message)
    if more and more not in message:
        text.append(f"\n{more}")
    try:
        errors().print(text, soft_wrap=True)
    except OSError:
        return  # stderr is gone as well: the status still says it


def open_standard_streams() -> None:
    """Give a closed stdin, stdout or stderr /dev/null, so that no file opened later takes its number."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False, encoding="utf-8"))


def forget_stdout() -> None:
    """Point stdout at /dev/null, so that the interpreter's last flush does not fail a second time."""
    descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.close(descriptor)
