"""One forward pass as a tape: tokens in, logits or a pooled vector out."""

from __future__ import annotations

from collections.abc import Mapping

from nocopy.models.architectures import ARCHITECTURES
from nocopy.models.architectures.bert import embeddings
from nocopy.models.config import Config
from nocopy.models.graph import Batch, Graph
from nocopy.tape import Tensor


def decoder(config: Config, weights: Mapping[str, Tensor], batch: Batch, logits: Tensor | None) -> Graph:
    """Record a pass of a language model over the rows of `batch`.

    Args:
        config: the model's shape.
        weights: its tensors by GGUF name.
        batch: the rows, and the caches that their keys and values join.
        logits: f32 [outputs, vocabulary], for the last `outputs` rows; None to fill the caches only.
    """
    g = Graph(config, weights, batch, wanted=0 if logits is None else logits.shape[0])
    x = g.embed("token_embd.weight", batch.tokens)
    if config.embedding_scale != 1.0:
        g.multiply(x, config.embedding_scale)
    x = blocks(g, x)
    if logits is not None:
        head = "output" if "output.weight" in weights else "token_embd"
        g.linear(g.rmsnorm(x, "output_norm"), head, logits)
        if config.logit_softcap:
            g.softcap(logits, config.logit_softcap)
    return g


def encoder(config: Config, weights: Mapping[str, Tensor], batch: Batch, out: Tensor) -> Graph:
    """Record a pass of an embedding model over one text; `out` is f32 [width], pooled, not normalised."""
    g = Graph(config, weights, batch)
    x = embeddings(g)
    x = blocks(g, x)
    if config.pooling == "mean":
        g.tape.reduce("mean", out, x.T)
    else:
        row = 0 if config.pooling == "cls" else batch.rows - 1
        g.tape.copy(out, g.rows(x, row, row + 1))
    return g


def blocks(g: Graph, x: Tensor) -> Tensor:
    """Every layer, each with the same scratch; the rows that are wanted of the last one's result."""
    layer = ARCHITECTURES[g.config.architecture].layer
    for i in range(g.config.layers):
        with g.reusing():
            x = layer(g, i, x)
    return x
