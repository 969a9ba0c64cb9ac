"""`nocopy run`: one guest on one device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

from cyclopts import Parameter

from nocopy.cli.freeze import write
from nocopy.cli.guest_options import GuestOptions, go_on

if TYPE_CHECKING:
    from nocopy.interfaces.host import DeviceGuest


def run(
    guest: Annotated[str, Parameter(help="A .wasm or .wat file, a folder with one, or an example's name.")],
    /,
    *args: Annotated[str, Parameter(help="The guest's own arguments, untouched.", allow_leading_hyphen=True)],
    invoke: Annotated[
        str | None,
        Parameter(metavar="FUNC", help="Call this export with ARGS as numbers, and print what it returns."),
    ] = None,
    report: Annotated[
        bool, Parameter(help="Then say on stderr which pointers, bytes and times there were.")
    ] = False,
    json: Annotated[bool, Parameter(help="Print that report as one line of JSON, on stderr.")] = False,
    freeze_on_exit: Annotated[
        Path | None,
        Parameter(metavar="FILE", help="When it has ended well, write what it is then: see `nocopy freeze`."),
    ] = None,
    options: GuestOptions | None = None,
) -> int:
    """See `app.VERBS`."""
    from time import perf_counter

    from nocopy.cli.guests import find_guest
    from nocopy.cli.report import Times, print_report
    from nocopy.interfaces.host import DeviceGuest

    given = (options or GuestOptions()).arguments()
    path = find_guest(guest)
    start = perf_counter()
    with DeviceGuest(
        path, args=[path.name, *args], stdin="inherit", stdout="inherit", stderr="inherit", **given
    ) as running:
        ready = perf_counter()
        try:
            status = play(running, invoke, args)
        finally:
            times = Times(start=ready - start, run=perf_counter() - ready)
            if report or json:
                print_report(running, times, json=json)
        if freeze_on_exit is not None:
            write(running, freeze_on_exit)
    return status


def play(guest: DeviceGuest, invoke: str | None, args: tuple[str, ...]) -> int:
    """Run the program, or the function that was asked for; return the guest's exit status.

    Raises:
        UsageError: there is no such function, or the arguments do not fit it.
    """
    from nocopy.errors import UsageError

    if invoke is not None:
        return call(guest, invoke, args)
    if "_start" not in guest.exports:
        functions = ", ".join(guest.exports)
        raise UsageError(
            f"{guest.module.name} was to be run; it is no program: it has no _start. "
            f"Call one of its functions with --invoke. It exports {functions}"
        )
    guest.run()
    go_on(guest)
    return 0


def call(guest: DeviceGuest, name: str, args: tuple[str, ...]) -> int:
    """Call an export with numbers and print what it returns, one number a line."""
    import sys

    answer = guest.call(name, *(number(a) for a in args))
    values = cast("tuple[object, ...]", answer) if isinstance(answer, tuple) else (answer,)
    sys.stdout.writelines(f"{value}\n" for value in values if value is not None)
    return 0


def number(text: str) -> int | float:
    """An argument of `--invoke`.

    Raises:
        UsageError: it is no number.
    """
    from nocopy.errors import UsageError

    for read in (lambda: int(text, 0), lambda: float(text)):
        try:
            return read()
        except ValueError:
            continue
    raise UsageError(
        f"the argument {text!r} was given to --invoke; only numbers cross between host and guest"
    )
