"""BERT (MiniLM, BGE) and nomic-bert: post-norm encoders; every token sees its whole text."""

from __future__ import annotations

from nocopy.models.architectures.llama import projections
from nocopy.models.graph import Graph
from nocopy.tape import Tensor


def embeddings(g: Graph) -> Tensor:
    """Token, type and, without rope, position embeddings, then a norm."""
    x = g.embed("token_embd.weight", g.batch.tokens)
    if "token_types.weight" in g.weights:
        g.add(x, g.rows(g.weight("token_types.weight"), 0, 1))
    if "position_embd.weight" in g.weights:
        g.add(x, g.embed("position_embd.weight", g.batch.positions))
    return g.layernorm(x, "token_embd_norm")


def layer(g: Graph, i: int, x: Tensor) -> Tensor:
    """One block: norm(x + attention(x)), then norm(x + mlp(x))."""
    q, k, v = projections(g, i, x)
    g.rotate(q, i)
    g.rotate(k, i)
    x = g.layernorm(
        g.add(x, g.linear(g.attend(q, k, v, i), f"blk.{i}.attn_output")), f"blk.{i}.attn_output_norm"
    )
    return g.layernorm(g.add(x, mlp(g, i, x)), f"blk.{i}.layer_output_norm")


def mlp(g: Graph, i: int, x: Tensor) -> Tensor:
    """down(gelu(up(x))), or SwiGLU where the model has a gate (nomic)."""
    up = g.linear(x, f"blk.{i}.ffn_up")
    if f"blk.{i}.ffn_gate.weight" in g.weights:
        return g.linear(g.gated(g.linear(x, f"blk.{i}.ffn_gate"), up, "silu"), f"blk.{i}.ffn_down")
    g.tape.unary("gelu", up, up)
    return g.linear(up, f"blk.{i}.ffn_down")
