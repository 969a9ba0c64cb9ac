"""`nocopy freeze`: runs a guest to its checkpoint, or its end, and writes a file that goes on from there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from nocopy.cli.guest_options import GuestOptions

if TYPE_CHECKING:
    from nocopy.interfaces.host import DeviceGuest
    from nocopy.snapshot.sign import Signer


def freeze(
    guest: Annotated[str, Parameter(help="A .wasm or .wat file, a folder with one, or an example's name.")],
    /,
    *args: Annotated[str, Parameter(help="The guest's own arguments, untouched.", allow_leading_hyphen=True)],
    output: Annotated[Path, Parameter(name=["-o", "--output"], metavar="FILE", help="The file to write.")],
    at: Annotated[
        str | None,
        Parameter(metavar="LABEL", help="The checkpoint to stop at. Left out, the first, or else the end."),
    ] = None,
    compress: Annotated[
        bool, Parameter(help="Write a smaller file, which is read when it is thawed, not mapped.")
    ] = False,
    key: Annotated[
        Path | None,
        Parameter(metavar="FILE", help="Sign it: an Ed25519 private key (PEM), or a file with a secret."),
    ] = None,
    options: GuestOptions | None = None,
) -> int:
    """See `app.VERBS`."""
    from nocopy.cli.guests import find_guest
    from nocopy.errors import UsageError
    from nocopy.interfaces.host import DeviceGuest
    from nocopy.snapshot.keys import load_signer

    given = (options or GuestOptions()).arguments()
    signer = None if key is None else load_signer(key)
    path = find_guest(guest)
    with DeviceGuest(
        path, args=[path.name, *args], stdin="inherit", stdout="inherit", stderr="inherit", **given
    ) as running:
        if "_start" in running.exports:
            running.run()
        seen = [running.checkpoint]
        while at is not None and running.checkpoint not in (at, None):
            running.resume()
            seen.append(running.checkpoint)
        if at is not None and running.checkpoint != at:
            labels = ", ".join(repr(label) for label in seen if label is not None) or "none"
            raise UsageError(f"--at {at} was asked for; the guest ended, and its checkpoints were {labels}")
        write(running, output, compress=compress, signer=signer)
    return 0


def write(guest: DeviceGuest, path: Path, *, compress: bool = False, signer: Signer | None = None) -> None:
    """Freeze a guest, with a bar, and say what was written, on stderr."""
    from rich.markup import escape

    from nocopy.cli.output import errors, size
    from nocopy.cli.progress import byte_bar

    with byte_bar("freezing") as progress:
        done = guest.freeze(
            path,
            compress=compress,
            signer=signer,
            progress=lambda written, of: progress("pages", written, of),
        )
    label = guest.checkpoint
    where = "at its end" if label is None else f"at the checkpoint {label!r}"
    errors().print(f"[dim]{escape(str(path))}: {size(done.nbytes)}, {escape(where)}[/]", soft_wrap=True)
