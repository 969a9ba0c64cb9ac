"""What a command line grants of wasi-nn: models in our notation, Wasmtime's and WasmEdge's; quotas."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nocopy.cli.grants import parse_count, parse_names, parse_size
from nocopy.errors import UsageError

if TYPE_CHECKING:
    from nocopy.interfaces.wasi_nn.grants import NnLimits, NnModel

JOINED = frozenset({"ggml", "bitnet"})
"""Encodings that are one file: what WasmEdge finds behind further colons is part of its path."""
YES, NO = frozenset({"", "y", "yes", "true"}), frozenset({"n", "no", "false"})
GRAPH_FILES = {"onnx": "model.onnx"}
"""The file that Wasmtime reads in the directory of an encoding."""
LIMITS = {
    "nn-graphs": "graphs",
    "nn-contexts": "contexts",
    "nn-bytes": "bytes",
    "nn-model-bytes": "model_bytes",
}
"""Name after -W, and the field of `NnLimits` that it sets."""


def parse_nn_models(
    named: Iterable[str], preloaded: Iterable[str], wasmtime: Iterable[str]
) -> dict[str, NnModel]:
    """The models by name.

    Args:
        named: "NAME=FILE", ours.
        preloaded: "NAME:ENCODING:TARGET:FILE", WasmEdge's.
        wasmtime: "nn-graph=ENCODING::DIR" after -S, Wasmtime's; a model is called like its directory.

    Raises:
        UsageError: a part is empty, or a name comes twice.
    """
    from nocopy.interfaces.wasi_nn.grants import NnModel

    found: dict[str, NnModel] = {
        name: NnModel(path) for name, path in parse_names(named, "--nn-model", "classify=model.onnx").items()
    }
    for text in preloaded:
        _add(found, *_preload(text), f"--nn-preload {text}")
    for text in wasmtime:
        for part in text.split(","):
            graph = _wasmtime(part)
            if graph is not None:
                _add(found, *graph, f"-S {part}")
    return found


def _add(found: dict[str, NnModel], name: str, model: NnModel, option: str) -> None:
    if name in found:
        raise UsageError(f"{option} was asked for; {name!r} is {found[name].file} already. Use other names.")
    found[name] = model


def _preload(text: str) -> tuple[str, NnModel]:
    from nocopy.interfaces.wasi_nn.grants import NnModel

    parts = text.split(":", 3)
    if len(parts) < 4 or not all(parts):
        raise UsageError(
            f"--nn-preload {text!r} was asked for; it takes NAME:ENCODING:TARGET:FILE, such as"
            " default:ggml:auto:model.gguf"
        )
    name, encoding, target, path = parts
    first, *more = [path] if encoding.lower() in JOINED else path.split(":")
    return name, NnModel(first, encoding, target, tuple(more))


def _turns_on(part: str) -> bool:
    option, _, value = part.partition("=")
    return option == "nn" and value in YES


def _wasmtime(part: str) -> tuple[str, NnModel] | None:
    """The model of one part of -S; None if it only turns wasi-nn on."""
    from nocopy.interfaces.wasi_nn.grants import NnModel

    if _turns_on(part):
        return None
    option, _, value = part.partition("=")
    encoding, separator, folder = value.partition("::")
    if option != "nn-graph" or not separator or not encoding or not folder:
        why = "a guest without grants has no models" if option == "nn" and value in NO else ""
        raise UsageError(f"-S {part} was asked for; it takes nn, and nn-graph=FORMAT::DIR. {why}".rstrip(" "))
    file = GRAPH_FILES.get(encoding.lower())
    if file is None:
        raise UsageError(
            f"-S {part} was asked for; models of Wasmtime's that can be played here are in"
            f" {', '.join(GRAPH_FILES)}. Use --nn-model or --nn-preload."
        )
    return Path(folder).resolve().name, NnModel(Path(folder) / file, encoding)


OWN_MODELS = 1 << 32
"""Bytes of models that a guest may bring after `-S nn`."""


def parse_nn_limits(parts: Iterable[tuple[str, str]], wasmtime: Iterable[str] = ()) -> NnLimits:
    """Quotas of pairs such as ("nn-contexts", "64").

    Args:
        parts: the pairs.
        wasmtime: what was given with -S, where "nn" lets the guest bring models, as in Wasmtime.

    Raises:
        UsageError: a value is wrong.
    """
    from nocopy.interfaces.wasi_nn.grants import NnLimits

    turned_on = any(_turns_on(part) for text in wasmtime for part in text.split(","))
    limits = NnLimits(model_bytes=OWN_MODELS if turned_on else 0)
    for name, value in parts:
        field = LIMITS[name]
        parse = parse_size if field.endswith("bytes") else parse_count
        limits = replace(limits, **{field: parse(value, f"-W {name}")})
    return limits
