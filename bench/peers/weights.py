"""A GGUF llama's weights as PyTorch tensors, with heads rotated as PyTorch programs rotate them."""

# torch says little about its types.
# pyright: standard

from __future__ import annotations

import torch

from nocopy.models.ggml import GGMLType
from nocopy.models.model import Model

from .contender import MissingError


def tensors(model: Model, device: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Every tensor by its GGUF name, on a device.

    GGUF's llamas rotate neighbours (2i, 2i + 1); rows of queries and keys are put in the order in which
    pairs are (i, i + half) instead, as transformers has them.
    """
    config = model.config
    if config.architecture != "llama" or config.rope is None or not config.rope.interleaved:
        raise MissingError(f"'{model.path}' is no llama whose heads rotate neighbours")
    heads = {"attn_q": config.heads, "attn_k": config.groups}
    found: dict[str, torch.Tensor] = {}
    for name, weight in model.weights.items():
        value = _loaded(model, name).to(device, dtype)
        part = name.split(".")[-2]
        if part in heads:
            rows = value.view(heads[part], config.head // 2, 2, weight.shape[1])
            value = rows.transpose(1, 2).reshape(weight.shape)
        found[name] = value
    found.setdefault("output.weight", found["token_embd.weight"])
    return found


def _loaded(model: Model, name: str) -> torch.Tensor:
    weight = model.weights[name]
    if weight.type is GGMLType.BF16:
        bits = torch.from_numpy(model.weights.raw(name).view("int16").copy())
        return bits.view(torch.bfloat16).view(weight.shape)
    return torch.from_numpy(model.weights.dequantize(name))
