"""From what a user says to the path of a model: a path, a name of the hub, or nothing for the default."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from nocopy.errors import UsageError
from nocopy.models.cache import cache_folder, find_cached
from nocopy.models.hub_name import NAME, HubName

EMBEDDED: Final = Path(__file__).with_name("tiny.gguf")
"""The model that comes with the package: 13 M parameters, trained on Python's standard library."""


def default_model() -> Path:
    """The path of the model that is used when none is named: $NOCOPY_MODEL, else the embedded one.

    Raises:
        UsageError: neither is there.
    """
    chosen = os.environ.get("NOCOPY_MODEL")
    if chosen:
        if not Path(chosen).exists():
            raise UsageError(f"NOCOPY_MODEL names {chosen}; there is no such file or folder")
        return Path(chosen)
    if not EMBEDDED.is_file():
        raise UsageError(
            "no default model is installed; give one with -m FILE or -hf USER/REPO, or set NOCOPY_MODEL"
        )
    return EMBEDDED


def find_model(model: str | os.PathLike[str] | None = None) -> Path:
    """The path of a model on this machine. Nothing is fetched.

    Args:
        model: a GGUF file or a folder; `user/repo[:QUANT]`, looked up in the Hugging Face cache; None for the
            default.

    Raises:
        UsageError: there is none.
    """
    if model is None:
        return default_model()
    path = Path(model)
    if path.exists() or not isinstance(model, str) or NAME.fullmatch(model) is None:
        return path  # opening it says what is wrong with it
    name = HubName.parse(model)
    found = find_cached(name)
    if found is None:
        raise UsageError(
            f"the model {model} was asked for; it is neither a path here nor in the Hugging Face cache,"
            f" {cache_folder()}. Fetch it: nocopy models pull {name}"
        )
    return found.path
