"""Reads a model's shape from GGUF metadata; the keys are those of the GGUF specification."""

from __future__ import annotations

import math

import numpy as np

from nocopy.errors import UnsupportedModelError
from nocopy.models import rope as ropes
from nocopy.models.architectures import ARCHITECTURES
from nocopy.models.config import Config, Rope
from nocopy.models.metadata import Metadata
from nocopy.models.weights import Weights

POOLING = {0: "", 1: "mean", 2: "cls", 3: "last"}


def read(meta: Metadata, weights: Weights) -> Config:
    """Return the shape of a GGUF model.

    Raises:
        UnsupportedModelError: an architecture, a rope scaling or a pooling that nothing here can play.
        MetadataError: a key is missing or has another type.
    """
    name = meta.architecture
    if name not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"a model of architecture '{name}' was asked for; there are {', '.join(ARCHITECTURES)}"
        )
    encoder = ARCHITECTURES[name].encoder
    layers, width = meta.integer(meta.key("block_count")), meta.integer(meta.key("embedding_length"))
    heads = meta.integer(meta.key("attention.head_count"))
    head = meta.integer(meta.key("attention.key_length"), width // heads)
    eps = "layer_norm_epsilon" if encoder else "layer_norm_rms_epsilon"
    return Config(
        architecture=name,
        layers=layers,
        width=width,
        heads=heads,
        groups=meta.integer(meta.key("attention.head_count_kv"), heads),
        head=head,
        hidden=meta.integer(meta.key("feed_forward_length")),
        vocabulary=weights.find("token_embd.weight").shape[0],
        context=meta.integer(meta.key("context_length")),
        eps=meta.number(meta.key(f"attention.{eps}")),
        attention_scale=attention_scale(name, layers, width, heads, head),
        rope=None if name == "bert" else rotation(meta, weights, head),
        local_rope=local_rotation(meta, head),
        windows=windows(meta, layers),
        attention_softcap=meta.number(meta.key("attn_logit_softcapping"), 0.0),
        logit_softcap=meta.number(meta.key("final_logit_softcapping"), 0.0),
        embedding_scale=math.sqrt(width) if name.startswith("gemma") else 1.0,
        causal=not encoder,
        pooling=pooling(meta) if encoder else "",
    )


def attention_scale(name: str, layers: int, width: int, heads: int, head: int) -> float:
    """1 / sqrt(head), but the 27 B Gemmas scale by the width of a head that they do not have."""
    if (name, layers) in {("gemma2", 46), ("gemma3", 62)}:
        return (width / heads) ** -0.5
    return head**-0.5


def rotation(meta: Metadata, weights: Weights, head: int) -> Rope:
    """Rotary positions with the scaling that the file asks for."""
    base = meta.number(meta.key("rope.freq_base"), 10000.0)
    f = ropes.plain(base, meta.integer(meta.key("rope.dimension_count"), head))
    interleaved = ARCHITECTURES[meta.architecture].rope == "interleaved"
    kind, scale = meta.string(meta.key("rope.scaling.type"), "none"), 1.0
    factor = meta.number(meta.key("rope.scaling.factor"), 1.0)
    original = meta.integer(
        meta.key("rope.scaling.original_context_length"), meta.integer(meta.key("context_length"))
    )
    if "rope_freqs.weight" in weights:
        f = ropes.divided(f, weights.dequantize("rope_freqs.weight"))
    elif "rope_factors_long.weight" in weights:
        context = meta.integer(meta.key("context_length"))
        which = "rope_factors_long.weight" if context > original else "rope_factors_short.weight"
        f = ropes.divided(f, weights.dequantize(which))
        scale = meta.number(
            meta.key("rope.scaling.attn_factor"), ropes.longrope_scale(context / original, original)
        )
    elif kind == "yarn":
        f, scale = ropes.yarn(f, base, factor, original), ropes.yarn_scale(factor)
    elif kind == "linear":
        f = f / factor
    elif kind not in ("none", "longrope"):
        raise UnsupportedModelError(
            f"'{meta.source}' scales its positions by '{kind}'; there are none, linear, yarn and factors"
        )
    return Rope(tuple(map(float, f)), interleaved, scale)


def local_rotation(meta: Metadata, head: int) -> Rope | None:
    """Gemma 3 turns its local layers with base 10000 and without scaling."""
    if meta.architecture != "gemma3":
        return None
    base = meta.number(meta.key("rope.local.freq_base"), meta.number(meta.key("rope.freq_base_swa"), 10000.0))
    return Rope(tuple(map(float, ropes.plain(base, head))), interleaved=False)


def windows(meta: Metadata, layers: int) -> tuple[int, ...]:
    """How many tokens each layer looks back."""
    window = meta.integer(meta.key("attention.sliding_window"), 0)
    if not window or meta.architecture in ("qwen2", "qwen3"):
        return ()
    period = {"gemma2": 2, "gemma3": 6}.get(meta.architecture, 0)
    key = meta.key("attention.sliding_window_pattern")
    if meta.has(key):
        pattern = meta[key]
        if isinstance(pattern, np.ndarray):
            return tuple(window if local else 0 for local in meta.array(key, count=layers))
        period = meta.integer(key)
    return tuple(0 if period and (i + 1) % period == 0 else window for i in range(layers))


def pooling(meta: Metadata) -> str:
    """How token vectors become one."""
    kind = meta.integer(meta.key("pooling_type"), 1)
    if POOLING.get(kind, "") == "":
        raise UnsupportedModelError(
            f"'{meta.source}' pools by method {kind}; there are 1 mean, 2 cls, 3 last"
        )
    return POOLING[kind]
