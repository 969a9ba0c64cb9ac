"""Small models with random weights, in the shapes of the architectures that exist: made by transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

VOCABULARY = 300
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 500000.0,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [1.5 + 0.2 * i for i in range(8)],
    "factor": 2.0,
    "original_max_position_embeddings": 64,
}
GEMMA = {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 20}

DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-2": ("Llama", {"num_key_value_heads": 4}),
    "llama-3": ("Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama-yarn": ("Llama", {"rope_parameters": YARN}),
    "llama-linear": ("Llama", {"rope_parameters": LINEAR}),
    "mistral": ("Mistral", {"sliding_window": 7, "head_dim": 16}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "phi3": ("Phi3", {"original_max_position_embeddings": 128}),
    "phi3-longrope": ("Phi3", {"original_max_position_embeddings": 64, "rope_parameters": LONGROPE}),
    "gemma2": ("Gemma2", GEMMA),
    "gemma3": ("Gemma3", GEMMA | {"num_hidden_layers": 7}),
}
"""Name: the class's prefix in transformers, and what its config has beyond `COMMON`."""


def make_decoder(name: str, **changes: Any) -> Any:
    """A causal language model in f32 with weights that make every part matter."""
    prefix, extra = DECODERS[name]
    config_class = "Gemma3TextConfig" if prefix == "Gemma3" else f"{prefix}Config"
    config = getattr(transformers, config_class)(**(COMMON | extra | changes))
    config._attn_implementation = "eager"
    return randomise(getattr(transformers, f"{prefix}ForCausalLM")(config))


def make_bert() -> Any:
    """A BERT encoder in f32."""
    shape = {k: COMMON[k] for k in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
    config = transformers.BertConfig(**shape, num_attention_heads=4, max_position_embeddings=64)
    return randomise(transformers.BertModel(config))


def randomise(model: Any) -> Any:
    """Seeded normal weights; norms and biases are far from their neutral values."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim == 1 else 0.15)
    return model.eval().float()


def save(model: Any, folder: Path) -> Path:
    """The folder, as Hugging Face lays it out."""
    model.save_pretrained(folder)
    return folder


def logits(model: Any, tokens: list[int]) -> Any:
    """F32 [tokens, vocabulary]."""
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].numpy()
