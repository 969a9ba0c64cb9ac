"""How a guest's end becomes an exception."""

from __future__ import annotations

from typing import Final

import wasmtime

from nocopy.errors import ExitError, FuelError, GuestError, TrapError

_BACKTRACE: Final = "error while executing at wasm backtrace:"
_CAUSE: Final = "Caused by:"


def describe(text: str) -> tuple[str, str]:
    """Split Wasmtime's message into the cause and the WebAssembly backtrace ("" if there is none)."""
    if _BACKTRACE not in text:
        return text.strip(), ""
    _, rest = text.split(_BACKTRACE, 1)
    backtrace, _, cause = rest.partition(_CAUSE)
    lines = [line.strip() for line in cause.strip().splitlines()]
    # Several causes are numbered from the outermost; the last one is what happened.
    last = lines[-1] if lines else "unknown"
    return last.partition(": ")[2] if last[:1].isdigit() else last, backtrace.strip("\n")


def _kind(trap: wasmtime.Trap) -> str:
    """The name of the trap, in lower case; "" for one that Wasmtime's Python package does not know."""
    try:
        code = trap.trap_code
    except ValueError:
        return ""
    return code.name.lower() if code is not None else ""


def convert(error: wasmtime.Trap | wasmtime.WasmtimeError, pending: BaseException | None) -> BaseException:
    """Return the exception to raise for what Wasmtime reports.

    Args:
        error: from Wasmtime.
        pending: what a callback of ours raised to end the guest; it is raised itself, with the backtrace
        as a note.
    """
    if isinstance(error, wasmtime.ExitTrap):
        return ExitError(error.code)
    text = error.message if isinstance(error, wasmtime.Trap) else str(error)
    cause, backtrace = describe(text)
    if pending is not None:
        if backtrace:
            pending.add_note(f"while the guest was running:\n{backtrace}")
        return pending
    kind = _kind(error) if isinstance(error, wasmtime.Trap) else ""
    where = f"\n{backtrace}" if backtrace else ""
    if kind == "out_of_fuel":
        return FuelError(f"the guest used all its fuel. Give it more, or none to count.{where}")
    if kind or backtrace:
        return TrapError(f"the guest trapped: {cause}{where}", trap=kind, backtrace=backtrace)
    return GuestError(f"the guest could not go on: {cause}")
