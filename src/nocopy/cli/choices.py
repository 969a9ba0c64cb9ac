"""Options that several verbs share."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter


def check_device(type_: Any, name: str | None) -> None:
    """Refuse a device that does not exist, and suggest the one that was meant."""
    from nocopy.device.discovery import MODULES

    del type_
    known = ("auto", *MODULES)
    if name is not None and name not in known:
        raise ValueError(f"There are {', '.join(known)}.{suggestion(name, known)}")


def check_choice(what: str, given: str, known: Collection[str]) -> None:
    """Refuse a name that is not known.

    Raises:
        UsageError: it names what is known, and the nearest.
    """
    from nocopy.errors import UsageError

    if given not in known:
        there = f"{what} {given!r} was asked for; there are {', '.join(known)}"
        raise UsageError(f"{there}.{suggestion(given, known)}")


def suggestion(given: str, known: Collection[str]) -> str:
    """The known name that is nearest to what was given, as the end of a message; "" if none is near."""
    near = difflib.get_close_matches(given, known, n=1)
    return f" Did you mean {near[0]}?" if near else ""


DeviceName = Annotated[
    str,
    Parameter(
        name="--device",
        metavar="NAME",
        validator=check_device,
        help="auto, metal, cuda, vulkan, cpu or reference; auto takes the first of these that is there, "
        "and no GPU that is emulated.",
    ),
]
Json = Annotated[bool, Parameter(name="--json", help="Print JSON.")]
Plot = Annotated[
    Path | None, Parameter(name="--plot", help="Also draw it: FILE.png, .svg or .pdf.", metavar="FILE")
]
AllowCopy = Annotated[
    bool,
    Parameter(
        name="--allow-copy",
        help="Let a device that cannot share the guest's memory copy it; the ledger counts every byte.",
    ),
]


def check_plot(path: Path | None) -> None:
    """Refuse a picture that could not be made, before the work and not after it.

    Raises:
        UsageError: matplotlib is missing, the format is unknown, or the folder does not exist.
    """
    from importlib.util import find_spec

    from nocopy.errors import UsageError

    if path is None:
        return
    if find_spec("matplotlib") is None:
        raise UsageError("--plot was asked for; matplotlib is not installed: pip install 'nocopy[plot]'")
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UsageError(f"--plot {path} was asked for; the name has to end in .png, .svg or .pdf")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--plot {path} was asked for; the folder {path.absolute().parent} does not exist")
