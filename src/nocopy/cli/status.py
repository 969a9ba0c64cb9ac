"""Exit statuses: one table that the code, `nocopy --help` and docs/cli.md agree on."""

from __future__ import annotations

from enum import IntEnum

from nocopy.errors import DeadlineError, Error, ExitError, FuelError, TrapError, UsageError


class Status(IntEnum):
    """What an exit status says. A guest that ends by itself gives its own."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    INTERRUPTED = 130  # 128 + SIGINT, as shells report it
    TRAP = 134  # 128 + SIGABRT, as `wasmtime run` reports a trap
    BROKEN_PIPE = 141  # 128 + SIGPIPE


MEANING = {
    Status.OK: "it worked",
    Status.FAILURE: "it failed: no device, not a guest or model, nothing fetched, a copy refused, no memory",
    Status.USAGE: "the command line is wrong: an option, a value, a missing file",
    Status.INTERRUPTED: "Ctrl-C",
    Status.TRAP: "the guest trapped, or ran out of time or fuel",
    Status.BROKEN_PIPE: "whoever read the output went away",
}


def status_of(error: Error) -> int:
    """The exit status for an error."""
    match error:
        case ExitError():
            return error.status
        case UsageError():
            return Status.USAGE
        case TrapError() | DeadlineError() | FuelError():
            return Status.TRAP
        case _:
            return Status.FAILURE
