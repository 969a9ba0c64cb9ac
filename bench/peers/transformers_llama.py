"""transformers as it comes: `LlamaForCausalLM`, scaled-dot-product attention, a growing cache, no graph."""

# torch says little about its types.
# pyright: standard

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers

from nocopy.models.config_hf import gguf_name
from nocopy.models.load import open_model
from nocopy.models.model import Model

from .contender import Task, measured
from .weights import tensors

TYPES = ("bf16",)


def load(model: Model, device: str, dtype: torch.dtype) -> transformers.LlamaForCausalLM:
    """The model with the weights of a GGUF file."""
    c, meta = model.config, model.metadata
    weights = tensors(model, device, dtype)
    tied = weights["output.weight"] is weights["token_embd.weight"]
    config = transformers.LlamaConfig(
        vocab_size=c.vocabulary,
        hidden_size=c.width,
        intermediate_size=c.hidden,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        num_key_value_heads=c.groups,
        head_dim=c.head,
        max_position_embeddings=c.context,
        rms_norm_eps=c.eps,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": meta.number(meta.key("rope.freq_base"), 10000.0),
        },
        tie_word_embeddings=tied,
        attn_implementation="sdpa",  # type: ignore[call-arg]
        dtype=dtype,
    )
    with torch.device("meta"):
        made = transformers.LlamaForCausalLM(config)
    named = {name: weights[str(gguf_name(name, "llama"))] for name in made.state_dict()}
    made.load_state_dict(named, assign=True)
    if tied:
        made.tie_weights()
    made.model.rotary_emb = type(made.model.rotary_emb)(config).to(device)
    return made.eval().requires_grad_(False)


def feed(
    model: transformers.LlamaForCausalLM, tokens: torch.Tensor, cache: Any, keep: int = 0
) -> torch.Tensor:
    """Logits [1, tokens, vocabulary] after tokens [1, tokens] that join a cache; the last `keep`, or all."""
    # The cache's argument has another name in newer versions, and the same place.
    found: torch.Tensor = model(tokens, None, None, cache, use_cache=True, logits_to_keep=keep).logits
    return found


class Runner:
    """A `Contender`."""

    version = transformers.__version__
    how = "LlamaForCausalLM called once a token"

    def __init__(self, model: transformers.LlamaForCausalLM, device: str) -> None:
        self.model, self.device = model, device
        self.token = torch.zeros(1, 1, dtype=torch.long, device=device)
        self.cache: Any = None

    def read(self, prompt: Sequence[int]) -> None:
        """Forget everything, read a prompt, and wait until that is done."""
        self.cache = transformers.DynamicCache(config=self.model.config)
        self._feed(torch.tensor([prompt], device=self.device))
        self.token.tolist()

    def generate(self, count: int) -> list[int]:
        """The next greedy tokens, each fed again; the last one too."""
        drawn: list[torch.Tensor] = []
        for _ in range(count):
            drawn.append(self.token)
            self._feed(self.token)
        return torch.cat(drawn).flatten().tolist()

    def _feed(self, tokens: torch.Tensor) -> None:
        self.token = feed(self.model, tokens, self.cache, keep=1)[:, -1].argmax(-1, keepdim=True)


@torch.inference_mode()
def measure(task: Task) -> dict[str, Any]:
    """Time it."""
    model = load(open_model(task.path), task.device, torch.bfloat16)
    return measured(Runner(model, task.device), task)
