"""Opening a model's files of either kind, whatever its architecture; its tokenizer; its chat template."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol, TypeAlias

from nocopy.models.chat_template import ChatTemplate, folder_chat_template, gguf_chat_template
from nocopy.models.gguf import GGUFModel, open_gguf
from nocopy.models.huggingface import FolderModel, open_folder
from nocopy.models.metadata import Metadata
from nocopy.models.tokenizer import Tokenizer
from nocopy.models.tokenizer_gguf import load_gguf_tokenizer
from nocopy.models.tokenizer_json import load_folder_tokenizer

ModelFiles: TypeAlias = GGUFModel | FolderModel
"""Open files of a model: `path`, `metadata`, `weights`, `close()`."""


class Described(Protocol):
    """Something that knows where a model lies and what it says of itself."""

    @property
    def path(self) -> Path:
        """The GGUF file or the folder."""
        ...

    @property
    def metadata(self) -> Metadata:
        """GGUF metadata or config.json."""
        ...


def open_files(path: str | os.PathLike[str]) -> ModelFiles:
    """Open a GGUF file, or a Hugging Face folder, of any architecture.

    Raises:
        UsageError: there is no such file, or the folder holds no model.
        ModelFileError: a file breaks its format.
        UnsupportedModelError: the weights are of a kind that is not known here.
    """
    return open_folder(path) if Path(path).is_dir() else open_gguf(path)


def load_tokenizer(model: Described) -> Tokenizer:
    """Build the tokenizer of a model.

    Raises:
        UsageError: a folder has no tokenizer.json.
        MetadataError, TokenizerError, UnsupportedModelError: it cannot be used; the message says why.
    """
    if model.path.is_dir():
        return load_folder_tokenizer(model.path)
    return load_gguf_tokenizer(model.metadata)


def load_chat_template(model: Described, tokenizer: Tokenizer) -> ChatTemplate:
    """Compile the chat template of a model.

    Raises:
        MetadataError: it has none.
        TemplateError: it does not compile.
    """
    if model.path.is_dir():
        return folder_chat_template(model.path, tokenizer)
    return gguf_chat_template(model.metadata, tokenizer)
