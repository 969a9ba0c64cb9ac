"""Models as Hugging Face keeps them: a folder with config.json and safetensors, in one file or sharded."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from nocopy.errors import ModelFileError, UnsupportedModelError, UsageError
from nocopy.models.mapped_file import MappedFile
from nocopy.models.metadata import Metadata
from nocopy.models.safetensors import read_safetensors
from nocopy.models.weights import Weight, Weights

JSON_LIMIT: Final = 64 * 2**20
"""Bytes of a JSON file that is read; the largest tokenizer.json in use has 33 MB."""
SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"


@dataclass(frozen=True)
class FolderModel:
    """An open model folder. `metadata` is config.json; its architecture is `model_type`."""

    path: Path
    metadata: Metadata
    weights: Weights

    def close(self) -> None:
        """Let go of the files; arrays made before stay readable. Closing twice is allowed."""
        self.weights.close()


def open_folder(path: str | os.PathLike[str]) -> FolderModel:
    """Map and validate a model folder.

    Args:
        path: the folder; it holds config.json and either model.safetensors or its index and shards.

    Raises:
        UsageError: there is no such folder, or a file of it is missing.
        ModelFileError: a file breaks its format.
        UnsupportedModelError: the weights are not safetensors, or of a dtype that is not known here.
    """
    path = Path(path)
    config = read_json(path / "config.json")
    architecture = config.get("model_type")
    metadata = Metadata(
        config, architecture if isinstance(architecture, str) else "", str(path / "config.json")
    )
    if (path / INDEX).is_file():
        return FolderModel(path, metadata, _sharded(path))
    if (path / SINGLE).is_file():
        file = MappedFile(path / SINGLE)
        return FolderModel(path, metadata, Weights([file], read_safetensors(file)))
    if any(path.glob("*.bin")):
        raise UnsupportedModelError(
            f"'{path}' holds pickled weights, which could run any code; use a folder with safetensors"
        )
    raise UsageError(f"the model folder '{path}' was asked for; it holds neither {SINGLE} nor {INDEX}")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file of at most `JSON_LIMIT` bytes.

    Raises:
        UsageError: there is no such file.
        ModelFileError: it is too large or not a JSON object.
    """
    file = MappedFile(path)
    if file.nbytes > JSON_LIMIT:
        raise ModelFileError(str(path), "too-large", f"it has {file.nbytes} bytes; {JSON_LIMIT} are accepted")
    try:
        found = json.loads(file.bytes.tobytes().decode())
    except (ValueError, RecursionError) as error:
        raise ModelFileError(str(path), "header", f"it is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ModelFileError(str(path), "header", f"it must be a JSON object; it is {type(found).__name__}")
    return cast(dict[str, Any], found)


def _sharded(path: Path) -> Weights:
    index = path / INDEX
    places = read_json(index).get("weight_map")
    shards = cast(dict[str, Any], places).values() if isinstance(places, dict) else [None]
    if not all(isinstance(name, str) for name in shards):
        raise ModelFileError(str(index), "header", "it has no weight_map from tensor names to files")
    weight_map = cast(dict[str, str], places)
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name or name in ("", ".", ".."):
            raise ModelFileError(str(index), "split", f"the shard {name!r} is not a plain file name")
    files = [MappedFile(path / name) for name in names]
    found: dict[str, Weight] = {}
    for i, (name, file) in enumerate(zip(names, files, strict=True)):
        for tensor, weight in read_safetensors(file, i).items():
            if weight_map.get(tensor) != name:
                raise ModelFileError(
                    str(index), "split", f"the tensor '{tensor}' lies in '{name}', not where the index says"
                )
            found[tensor] = weight
    missing = weight_map.keys() - found.keys()
    if missing:
        raise ModelFileError(
            str(index),
            "split",
            f"{len(missing)} tensors are in no shard, first '{min(missing)}'; fetch it again",
        )
    return Weights(files, found)
