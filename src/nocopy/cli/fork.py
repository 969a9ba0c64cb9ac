"""`nocopy fork`: goes on several times with a guest that was frozen."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from nocopy.cli.guest_options import GuestOptions
from nocopy.cli.snapshots import Key
from nocopy.cli.thaw import Invoke, ModuleFile, Verification, play, thawing


def fork(
    file: Annotated[Path, Parameter(help="What `nocopy freeze` wrote.")],
    n: Annotated[int, Parameter(help="How many clones.")],
    /,
    *args: Annotated[str, Parameter(help="Numbers for --invoke.", allow_leading_hyphen=True)],
    output: Annotated[
        Path | None,
        Parameter(
            name=["-o", "--output"],
            metavar="FOLDER",
            help="Write what each clone is at its end: FOLDER/0.nocopy, FOLDER/1.nocopy, ...",
        ),
    ] = None,
    invoke: Invoke = None,
    module: ModuleFile = None,
    verify: Verification = "eager",
    key: Key = None,
    options: GuestOptions | None = None,
) -> int:
    """See `app.VERBS`."""
    from nocopy.cli.entry import complain
    from nocopy.cli.freeze import write
    from nocopy.cli.output import errors
    from nocopy.cli.status import status_of
    from nocopy.errors import ExitError, GuestError, UsageError
    from nocopy.interfaces.thaw import thaw

    if n < 1:
        raise UsageError(f"{n} clones were asked for; the number must be 1 or more")
    if output is not None and not output.is_dir():
        raise UsageError(f"-o {output} was given; there is no such folder")
    status = 0
    with thaw(file, **thawing(options, module, verify, key)) as guest:
        clones = guest.fork(n, stdout="inherit", stderr="inherit")
        try:
            for clone in clones:
                sys.stdout.flush()
                errors().print(f"[bold]clone {clone.clone.index}[/]")
                try:
                    play(clone, invoke, args)
                except GuestError as error:  # it ends this one and touches no other
                    status = status_of(error)
                    if not isinstance(error, ExitError):
                        complain(str(error))
                if output is not None:
                    write(clone, output / f"{clone.clone.index}.nocopy")
        finally:
            for clone in clones:
                clone.close()
    return status
