"""What a model file says of itself, in a bounded space, for `nocopy models show`."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from nocopy.cli.output import size

if TYPE_CHECKING:
    from nocopy.models.config import Config
    from nocopy.models.open import ModelFiles

SHOWN: Final = 120
"""Characters of a value that are shown: a file's strings may be long, and no one reads them here."""


def describe(path: Path, *, metadata: bool = False) -> dict[str, Any]:
    """Everything that `show` prints. Nothing of the weights is read.

    Raises:
        UsageError, ModelFileError: there is no model, or its files break their format.
    """
    from nocopy.errors import Error
    from nocopy.models.load import open_model
    from nocopy.models.open import open_files

    files = open_files(path)
    name = files.metadata.get("general.name")
    found: dict[str, Any] = {
        "name": printable(name) if isinstance(name, str) else path.name,
        "path": str(path),
        "architecture": printable(files.metadata.architecture),
        "parameters": files.weights.parameters,
        "bytes": sum(file.nbytes for file in files.weights.files),
        "types": types(files),
        "tokenizer": tokenizer(files),
        "chat_template": template(files),
    }
    try:
        model = open_model(path)
    except Error as error:  # said, not raised: the file can be looked at all the same
        found |= {"playable": False, "reason": printable(str(error))}
    else:
        found |= {"playable": True} | shape(model.config)
        model.close()
    if metadata:
        found["metadata"] = {printable(k): printable(value_text(v)) for k, v in files.metadata.items()}
    files.close()
    return found


def types(files: ModelFiles) -> dict[str, int]:
    """Bytes of the weights by type, the largest share first."""
    sums: dict[str, int] = {}
    for name in files.weights:
        weight = files.weights[name]
        sums[weight.type.name] = sums.get(weight.type.name, 0) + weight.nbytes
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def tokenizer(files: ModelFiles) -> dict[str, Any] | None:
    """Its kind and size; None if it has none that can be used."""
    from nocopy.errors import Error
    from nocopy.models.open import load_tokenizer

    try:
        made = load_tokenizer(files)
    except Error as error:
        return {"reason": printable(str(error))}
    return {
        "kind": made.kind,
        "tokens": made.size,
        "ends": [printable(_piece(made, t)) for t in sorted(made.end_ids)],
    }


def _piece(made: Any, token: int) -> str:
    return made.piece(token).decode(errors="replace")


def template(files: ModelFiles) -> bool:
    """Whether it can hold conversations."""
    if files.path.is_dir():
        from nocopy.models.huggingface import read_json

        config = files.path / "tokenizer_config.json"
        inside = config.is_file() and "chat_template" in read_json(config)
        return inside or (files.path / "chat_template.jinja").is_file()
    return files.metadata.has("tokenizer.chat_template")


def shape(config: Config) -> dict[str, Any]:
    """The numbers that shape it, and what a token of its context costs."""
    from nocopy.memory.dtype import DType
    from nocopy.models.kv import Cache
    from nocopy.tape import Space

    found: dict[str, Any] = {
        "context": config.context,
        "layers": config.layers,
        "width": config.width,
        "heads": config.heads,
        "kv_heads": config.groups,
        "head": config.head,
        "hidden": config.hidden,
        "vocabulary": config.vocabulary,
    }
    if config.causal:
        kinds = [k for k in (DType.F16, DType.Q8_0) if config.head % k.block == 0]
        found["kv_bytes_per_token"] = {
            kind.name.lower(): Cache(config, Space.GUEST, 0, 1, kind).token_bytes for kind in kinds
        }
    else:
        found["pooling"] = config.pooling
    return found


def rows(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The same for people, a line each."""
    yield "model", found["name"]
    yield "path", found["path"]
    yield "architecture", found["architecture"]
    yield "parameters", f"{found['parameters']:,}"
    yield "size", size(found["bytes"])
    yield "types", ", ".join(f"{kind} {size(nbytes)}" for kind, nbytes in found["types"].items())
    if found["playable"]:
        yield "context", f"{found['context']:,} tokens"
        yield "layers", f"{found['layers']}, {found['width']} wide, {found['hidden']} hidden"
        yield (
            "attention",
            f"{found['heads']} heads of {found['head']}, {found['kv_heads']} for keys and values",
        )
        costs = found.get("kv_bytes_per_token")
        if costs:
            yield "KV per token", ", ".join(f"{size(nbytes)} in {kind}" for kind, nbytes in costs.items())
        else:
            yield "embeddings", f"{found['width']} elements, pooled by {found['pooling']}"
    else:
        yield "playable", f"no: {found['reason']}"
    made = found["tokenizer"]
    if "reason" in made:
        yield "tokenizer", f"none: {made['reason']}"
    else:
        yield (
            "tokenizer",
            f"{made['kind']}, {made['tokens']:,} tokens, ends with {' '.join(made['ends']) or 'none'}",
        )
    yield "chat template", "yes" if found["chat_template"] else "no"
    yield from found.get("metadata", {}).items()


def value_text(value: object) -> str:
    """A metadata value, without making text of a whole vocabulary."""
    if isinstance(value, str):
        return repr(value[: SHOWN + 1])
    if isinstance(value, int | float):
        return repr(value)
    several = cast("Sized", value)
    if isinstance(value, np.ndarray):
        shown: list[Any] = cast("np.ndarray[Any, Any]", value)[:8].tolist()
        return f"{shown}" if len(several) <= 8 else f"{len(several)} numbers, first {shown}"
    return "none" if value is None else f"{len(several)} values"


def printable(text: str) -> str:
    """At most `SHOWN` characters that no terminal takes for a command."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[: SHOWN + 1])
    return shown if len(text) <= SHOWN else shown[: SHOWN - 1] + "…"
