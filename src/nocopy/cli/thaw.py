"""`nocopy thaw`: goes on with a guest that was frozen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from nocopy.cli.guest_options import GuestOptions, go_on
from nocopy.cli.snapshots import Key, verifier

if TYPE_CHECKING:
    from nocopy.interfaces.host import DeviceGuest

Invoke = Annotated[
    str | None,
    Parameter(
        metavar="FUNC", help="Call this export with ARGS as numbers, and print what it returns, instead."
    ),
]
ModuleFile = Annotated[
    Path | None,
    Parameter(metavar="FILE", help="The module, for a file that is without it."),
]
Verification = Annotated[
    Literal["eager", "lazy", "off"],
    Parameter(help="Check every page before it goes on, while it runs, or (your own files) not at all."),
]


def thaw(
    file: Annotated[Path, Parameter(help="What `nocopy freeze` wrote.")],
    /,
    *args: Annotated[str, Parameter(help="Numbers for --invoke.", allow_leading_hyphen=True)],
    invoke: Invoke = None,
    module: ModuleFile = None,
    verify: Verification = "eager",
    key: Key = None,
    freeze_on_exit: Annotated[
        Path | None,
        Parameter(metavar="FILE", help="When it has ended well, write what it is then."),
    ] = None,
    options: GuestOptions | None = None,
) -> int:
    """See `app.VERBS`."""
    from nocopy.cli.freeze import write
    from nocopy.interfaces.thaw import thaw as thaw_guest

    given = thawing(options, module, verify, key)
    with thaw_guest(file, stdin="inherit", stdout="inherit", stderr="inherit", **given) as guest:
        play(guest, invoke, args)
        if freeze_on_exit is not None:
            write(guest, freeze_on_exit)
    return 0


def thawing(
    options: GuestOptions | None, module: Path | None, verify: str, key: Path | None
) -> dict[str, Any]:
    """What `thaw` takes.

    Raises:
        UsageError: a value is wrong, or the key cannot be read.
    """
    given = (options or GuestOptions()).arguments()
    return given | {"module": module, "verify": verify, "key": verifier(key)}


def play(guest: DeviceGuest, invoke: str | None, args: tuple[str, ...]) -> None:
    """Go on from its checkpoint, or call the function that was asked for.

    Raises:
        UsageError: it is at no checkpoint and no function was asked for, or arguments were given for none.
    """
    from nocopy.cli.run import call
    from nocopy.errors import UsageError

    if invoke is not None:
        call(guest, invoke, args)
    elif args:
        raise UsageError(f"{' '.join(args)} was given; only --invoke takes arguments. The guest has its own")
    elif guest.checkpoint is None:
        raise UsageError(
            f"going on with {guest.module.name} was asked for; it is at no checkpoint. Call one of its"
            f" functions with --invoke. It exports {', '.join(guest.exports)}"
        )
    go_on(guest)
