"""A model on disk: its shape, its weights where they lie in the mapped files, its tokenizer and template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nocopy.memory.linear import LinearMemory
from nocopy.memory.view import TensorView
from nocopy.models.config import Config
from nocopy.models.metadata import Metadata
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

    def close(self) -> None:
        """Let go of the files; placements made before must be closed first."""
        self.weights.close()
        for memory in self.constants:
            memory.close()
