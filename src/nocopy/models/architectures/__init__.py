"""One small file for each family of models; `ARCHITECTURES` says which architecture is of which family.

To add one: a module with `layer`, a line here, and in `config_gguf.py` or `config_hf.py` what its metadata
says differently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nocopy.models.architectures import bert, gemma, llama
from nocopy.models.graph import Graph
from nocopy.tape import Tensor

Layer = Callable[[Graph, int, Tensor], Tensor]


@dataclass(frozen=True)
class Architecture:
    """How a family of models is built.

    `layer` records one block. `rope` says how GGUF files of this architecture pair rotated elements.
    `encoder` models see a whole text at once and give embeddings.
    """

    layer: Layer
    rope: str = "half"
    encoder: bool = False


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(llama.layer, rope="interleaved"),
    "mistral": Architecture(llama.layer),
    "qwen2": Architecture(llama.layer),
    "qwen3": Architecture(llama.layer),
    "phi3": Architecture(llama.layer),
    "gemma2": Architecture(gemma.layer),
    "gemma3": Architecture(gemma.layer),
    "bert": Architecture(bert.layer, encoder=True),
    "nomic-bert": Architecture(bert.layer, encoder=True),
}
