"""Llama 2 and 3, Mistral, Qwen 2 and 3, Phi-3: pre-norm, grouped-query attention, SwiGLU.

What differs between them is in the weights: biases on q, k, v (Qwen 2), norms on q and k (Qwen 3), fused
projections (Phi-3); and in the config: rope scaling, sliding window.
"""

from __future__ import annotations

from nocopy.models.graph import Graph
from nocopy.tape import Tensor


def layer(g: Graph, i: int, x: Tensor) -> Tensor:
    """One block: x + attention(norm(x)), then x + mlp(norm(x))."""
    x = g.add(g.wanted(x, i), attention(g, i, g.rmsnorm(x, f"blk.{i}.attn_norm")))
    return g.add(x, mlp(g, i, g.rmsnorm(x, f"blk.{i}.ffn_norm"), "silu"))


def attention(g: Graph, i: int, x: Tensor) -> Tensor:
    """Project, rotate, attend, project."""
    q, k, v = projections(g, i, x)
    if f"blk.{i}.attn_q_norm.weight" in g.weights:
        q, k = g.rmsnorm(q, f"blk.{i}.attn_q_norm"), g.rmsnorm(k, f"blk.{i}.attn_k_norm")
    g.rotate(q, i)
    g.rotate(k, i)
    return g.linear(g.attend(q, k, v, i), f"blk.{i}.attn_output")


def projections(g: Graph, i: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of the rows that are wanted, keys and values of all, as [rows, heads, head].

    From one product where the model fuses them.
    """
    c = g.config
    if f"blk.{i}.attn_qkv.weight" in g.weights:
        qkv = g.linear(x, f"blk.{i}.attn_qkv")
        ends = (c.heads * c.head, c.heads * c.head + c.kv_width, c.heads * c.head + 2 * c.kv_width)
        q, k, v = (g.columns(qkv, a, b) for a, b in zip((0, *ends), ends, strict=False))
        q = g.wanted(q, i)
    else:
        q = g.linear(g.wanted(x, i), f"blk.{i}.attn_q")
        k, v = (g.linear(x, f"blk.{i}.attn_{name}") for name in "kv")
    return g.heads(q, c.heads), g.heads(k, c.groups), g.heads(v, c.groups)


def mlp(g: Graph, i: int, x: Tensor, function: str) -> Tensor:
    """down(function(gate(x)) * up(x)); gate and up come from one product where the model fuses them."""
    if f"blk.{i}.ffn_gate.weight" in g.weights:
        gate, up = g.linear(x, f"blk.{i}.ffn_gate"), g.linear(x, f"blk.{i}.ffn_up")
    else:
        both = g.linear(x, f"blk.{i}.ffn_up")
        half = both.shape[1] // 2
        gate, up = g.columns(both, 0, half), g.columns(both, half, 2 * half)
    return g.linear(g.gated(gate, up, function), f"blk.{i}.ffn_down")
