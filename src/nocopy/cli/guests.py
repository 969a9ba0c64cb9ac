"""Finds the guest that a command line names: a file, a folder with one in it, or an example of ours."""

from __future__ import annotations

from pathlib import Path

from nocopy.cli.choices import suggestion
from nocopy.errors import UsageError
from nocopy.examples import EXAMPLES, find

SUFFIXES = (".wasm", ".wat")


def find_guest(text: str) -> Path:
    """The file of a guest.

    Args:
        text: a path to a file; a path to a folder, which has `<its name>.wasm` or just one guest in it; or
            the name of an example, such as "matmul" or "examples/matmul".

    Raises:
        UsageError: there is no such file, or a folder has none or several.
    """
    path = Path(text)
    if path.is_dir():
        found = guest_in(path)
        if found is not None:
            return found
    elif path.exists():
        return path
    name = text.rstrip("/").removeprefix("./").removeprefix("examples/")
    example = find(f"examples/{name}")
    if example is not None:
        return example
    if path.is_dir():
        kinds = " or ".join(SUFFIXES)
        raise UsageError(f"the guest {text} was asked for; that folder has no {kinds} file in it")
    listed, near = ", ".join(EXAMPLES), suggestion(name, EXAMPLES)
    raise UsageError(
        f"the guest {text} was asked for; there is no such file. The examples are {listed}.{near}"
    )


def guest_in(folder: Path) -> Path | None:
    """The guest in a folder; None if it has none.

    Raises:
        UsageError: it has several and none of them is named like the folder.
    """
    found = sorted(p for p in folder.iterdir() if p.suffix in SUFFIXES and p.is_file())
    named = [p for p in found if p.stem == folder.resolve().name]
    if len(found) > 1 and not named:
        listed = ", ".join(p.name for p in found)
        raise UsageError(f"the guest {folder} was asked for; that folder has {listed}. Name one of them.")
    return (named or found or [None])[0]
