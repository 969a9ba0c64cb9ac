"""Gemma 2 and 3: norms before and after each half, GeGLU, local and global layers, scaled embeddings.

Gemma 2 caps scores and logits; Gemma 3 norms q and k and turns local layers with a rope of their own.
"""

from __future__ import annotations

from nocopy.models.architectures.llama import attention, mlp
from nocopy.models.graph import Graph
from nocopy.tape import Tensor


def layer(g: Graph, i: int, x: Tensor) -> Tensor:
    """One block: x + norm(attention(norm(x))), then x + norm(mlp(norm(x)))."""
    y = attention(g, i, g.rmsnorm(x, f"blk.{i}.attn_norm"))
    x = g.add(g.wanted(x, i), g.rmsnorm(y, f"blk.{i}.post_attention_norm"))
    y = mlp(g, i, g.rmsnorm(x, f"blk.{i}.ffn_norm"), "gelu_tanh")
    return g.add(x, g.rmsnorm(y, f"blk.{i}.post_ffw_norm"))
