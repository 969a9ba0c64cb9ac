"""Opens a model, whatever it is: `open_model(path)`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from nocopy.errors import UsageError
from nocopy.memory.linear import LinearMemory
from nocopy.memory.view import TensorView
from nocopy.models import config_gguf, config_hf
from nocopy.models.gguf import open_gguf
from nocopy.models.huggingface import open_folder, read_json
from nocopy.models.model import Model
from nocopy.models.weights import Weight, Weights


def open_model(path: str | os.PathLike[str]) -> Model:
    """Open a GGUF file (or the first part of a split one) or a Hugging Face folder.

    Nothing is loaded: files are mapped and their headers checked.

    Raises:
        UsageError: there is no such file or folder.
        ModelFileError: a file breaks its format.
        UnsupportedModelError: a sound model that nothing here can play.
        MetadataError: a key that the architecture needs is missing or has another type.
    """
    path = Path(path)
    return _open_folder(path) if path.is_dir() else _open_file(path)


def _open_file(path: Path) -> Model:
    if path.suffix == ".safetensors":
        raise UsageError(f"the model '{path}' was asked for; open its folder, which has config.json too")
    found = open_gguf(path)
    return Model(path, found.metadata, config_gguf.read(found.metadata, found.weights), found.weights)


def _open_folder(path: Path) -> Model:
    found = open_folder(path)
    config = config_hf.read(found.metadata)
    names = {name: config_hf.gguf_name(name, config.architecture) for name in found.weights}
    tensors: dict[str, Weight] = {
        renamed: replace(found.weights[name], name=renamed) for name, renamed in names.items() if renamed
    }
    if found.metadata.boolean("tie_word_embeddings", False):
        tensors.pop("output.weight", None)
    weights = Weights(found.weights.files, tensors)
    model = Model(path, found.metadata, config, weights)
    if config.architecture == "bert":
        model.config = replace(config, pooling=_pooling(path))
    offset = [n for n in tensors if config_hf.is_offset_norm(n, config.architecture)]
    if offset:
        model.constants, model.derived = _whole_norms(weights, offset)
    return model


def _pooling(path: Path) -> str:
    """What sentence-transformers wrote beside the model; the mean unless it says otherwise."""
    found = path / "1_Pooling" / "config.json"
    if found.is_file() and read_json(found).get("pooling_mode_cls_token"):
        return "cls"
    return "mean"


def _whole_norms(weights: Weights, names: list[str]) -> tuple[list[LinearMemory], dict[str, TensorView]]:
    """Norm weights plus 1, in a memory of their own: some kilobytes."""
    sizes = {name: -(-weights[name].elements * 4 // 64) * 64 for name in names}
    memory = LinearMemory(-(-sum(sizes.values()) // 65536) * 65536, reserve=0, guard=0)
    derived: dict[str, TensorView] = {}
    offset = 0
    for name in names:
        derived[name] = memory.view(weights[name].shape, "f32", offset)
        derived[name].numpy()[...] = weights.dequantize(name) + np.float32(1)
        offset += sizes[name]
    return [memory], derived
