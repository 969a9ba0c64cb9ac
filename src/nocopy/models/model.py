"""A model on disk: its shape, its weights where they lie in the mapped files, its tokenizer and template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from nocopy.memory.linear import LinearMemory
from nocopy.memory.view import TensorView
from nocopy.models.chat_template import ChatTemplate
from nocopy.models.config import Config
from nocopy.models.digest import model_digest
from nocopy.models.metadata import Metadata
from nocopy.models.open import load_chat_template, load_tokenizer
from nocopy.models.tokenizer import Tokenizer
from nocopy.models.weights import Weights


@dataclass
class Model:
    """An open model. Nothing of the weights has been read yet; pages come in as they are touched.

    `derived` are the few small tensors that are not in the file as they are used (Gemma's norms in Hugging
    Face folders); they lie in `constants`.
    """

    path: Path
    metadata: Metadata
    config: Config
    weights: Weights
    constants: Sequence[LinearMemory] = ()
    derived: Mapping[str, TensorView] = field(default_factory=dict[str, TensorView])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer, built when it is first asked for. Raises what `load_tokenizer` raises."""
        return load_tokenizer(self)

    @cached_property
    def template(self) -> ChatTemplate:
        """Its chat template, compiled when it is first asked for. Raises what `load_chat_template` raises."""
        return load_chat_template(self, self.tokenizer)

    @cached_property
    def digest(self) -> bytes:
        """What tells it from another model: 32 bytes; see `digest.py`. Raises ClosedError."""
        return model_digest(self)

    def close(self) -> None:
        """Let go of the files; placements made before must be closed first."""
        self.weights.close()
        for memory in self.constants:
            memory.close()
