"""Opening a model of either kind: one function each for the model, its tokenizer and its chat template."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

from nocopy.models.chat_template import ChatTemplate, folder_chat_template, gguf_chat_template
from nocopy.models.gguf import GGUFModel, open_gguf
from nocopy.models.huggingface import FolderModel, open_folder
from nocopy.models.tokenizer import Tokenizer
from nocopy.models.tokenizer_gguf import load_gguf_tokenizer
from nocopy.models.tokenizer_json import load_folder_tokenizer

Model: TypeAlias = GGUFModel | FolderModel
"""An open model: `path`, `metadata`, `weights`, `close()`."""


def open_model(path: str | os.PathLike[str]) -> Model:
    """Open a GGUF file, or a Hugging Face folder.

    Raises:
        UsageError: there is no such file, or the folder holds no model.
        ModelFileError: a file breaks its format.
        UnsupportedModelError: the weights are of a kind that is not known here.
    """
    return open_folder(path) if Path(path).is_dir() else open_gguf(path)


def load_tokenizer(model: Model) -> Tokenizer:
    """Build the tokenizer of a model.

    Raises:
        UsageError: a folder has no tokenizer.json.
        MetadataError, TokenizerError, UnsupportedModelError: it cannot be used; the message says why.
    """
    if isinstance(model, GGUFModel):
        return load_gguf_tokenizer(model.metadata)
    return load_folder_tokenizer(model.path)


def load_chat_template(model: Model, tokenizer: Tokenizer) -> ChatTemplate:
    """Compile the chat template of a model.

    Raises:
        MetadataError: it has none.
        TemplateError: it does not compile.
    """
    if isinstance(model, GGUFModel):
        return gguf_chat_template(model.metadata, tokenizer)
    return folder_chat_template(model.path, tokenizer)
