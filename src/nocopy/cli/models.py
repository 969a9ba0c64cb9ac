"""`nocopy models`: what is on this machine, what a model is, and what comes and goes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from nocopy.cli.choices import Json

if TYPE_CHECKING:
    from nocopy.models.cache import CachedModel

HubModelName = Annotated[str, Parameter(name="NAME", help="USER/REPO or USER/REPO:QUANT.")]


def ls(*, json: Json = False) -> int:
    """List them. See `app.VERBS`."""
    from nocopy.cli.output import console, print_json, size, table
    from nocopy.models.cache import cache_folder, cached_models
    from nocopy.models.find import EMBEDDED

    found = [as_dict(model) for model in cached_models()]
    embedded: dict[str, Any] = {"kind": "gguf", "bytes": EMBEDDED.stat().st_size, "path": str(EMBEDDED)}
    if json:
        print_json({"cache": str(cache_folder()), "embedded": embedded, "models": found})
        return 0
    rows = table("model", "kind", "size", right=("size",))
    first: dict[str, Any] = {"name": "(embedded)"} | embedded
    for model in (first, *found):
        rows.add_row(model["name"], model["kind"], size(model["bytes"]))
    console().print(rows)
    if not found:
        console().print(
            f"No other models in {cache_folder()}. Fetch one: nocopy models pull USER/REPO", soft_wrap=True
        )
    return 0


def as_dict(model: CachedModel) -> dict[str, Any]:
    """A model in the cache as `--json` prints it."""
    return {"name": str(model.name), "kind": model.kind, "bytes": model.nbytes, "path": str(model.path)}


def show(
    model: Annotated[
        str | None, Parameter(help="A file, a folder, or USER/REPO[:QUANT]; left out, the default.")
    ] = None,
    /,
    *,
    metadata: Annotated[bool, Parameter(help="Also print every key, shortened.")] = False,
    json: Json = False,
) -> int:
    """Say what a model is. See `app.VERBS`."""
    from rich.text import Text

    from nocopy.cli.model_card import describe, rows
    from nocopy.cli.output import console, print_json, table
    from nocopy.models.find import find_model

    found = describe(find_model(model), metadata=metadata)
    if json:
        print_json(found)
        return 0
    shown = table("", "")
    shown.show_header = False
    for name, value in rows(found):
        shown.add_row(Text(name, "dim"), Text(value))
    console().print(shown)
    return 0


def pull(name: HubModelName, /, *, json: Json = False) -> int:
    """Fetch a model. See `app.VERBS`."""
    from nocopy.cli.language import fetch
    from nocopy.cli.output import print_json
    from nocopy.models.hub_name import HubName

    found = fetch(HubName.parse(name))
    if json:
        print_json(as_dict(found))
    else:
        sys.stdout.write(f"{found.path}\n")
    return 0


def rm(
    name: HubModelName,
    /,
    *,
    yes: Annotated[bool, Parameter(name=["-y", "--yes"], help="Do not ask.")] = False,
    json: Json = False,
) -> int:
    """Delete a model from the cache. See `app.VERBS`."""
    from nocopy.cli.output import errors, print_json, size
    from nocopy.cli.status import Status
    from nocopy.models.cache import remove

    models = to_remove(name)
    if not yes and not confirmed(models):
        errors().print("Nothing was deleted.")
        return Status.FAILURE
    freed = remove(models)
    if json:
        print_json({"deleted": [str(model.name) for model in models], "bytes": freed})
    else:
        errors().print(f"{size(freed)} are free again.")
    return 0


def to_remove(text: str) -> list[CachedModel]:
    """The models in the cache that a name means: without QUANT, all of the repository.

    Raises:
        UsageError: there are none.
    """
    from nocopy.errors import UsageError
    from nocopy.models.cache import cache_folder, cached_models
    from nocopy.models.hub_name import HubName

    if Path(text).exists():
        raise UsageError(
            f"deleting {text} was asked for; only models in the cache, {cache_folder()}, are deleted"
        )
    name = HubName.parse(text)
    there = cached_models(name.repo)
    found = [model for model in there if name.quant.upper() in ("", model.name.quant)]
    if not found:
        have = f"; it has {', '.join(str(model.name) for model in there)}" if there else ""
        raise UsageError(f"deleting {text} was asked for; it is not in the cache, {cache_folder()}{have}")
    return found


def confirmed(models: list[CachedModel]) -> bool:
    """Ask on the terminal.

    Raises:
        UsageError: there is nobody to ask.
    """
    from nocopy.cli.output import size
    from nocopy.errors import UsageError

    if not sys.stdin.isatty():
        raise UsageError("a model was to be deleted; nobody can be asked here. Say --yes")
    for model in models:
        sys.stderr.write(f"{model.name}, {size(model.nbytes)}, {model.path}\n")
    sys.stderr.write("Delete? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
