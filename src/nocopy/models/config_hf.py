"""Reads a model's shape from a Hugging Face config.json, and gives its tensors their GGUF names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, cast

from nocopy.errors import UnsupportedModelError
from nocopy.models import rope as ropes
from nocopy.models.config import Config, Rope
from nocopy.models.config_gguf import attention_scale
from nocopy.models.metadata import Metadata

FAMILIES = {
    "llama": "llama",
    "mistral": "mistral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "phi3": "phi3",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "gemma3_text": "gemma3",
    "bert": "bert",
    "nomic_bert": "nomic-bert",
}
"""`model_type` to architecture."""


def read(meta: Metadata) -> Config:
    """Return the shape of a Hugging Face model.

    Raises:
        UnsupportedModelError: a model type or a rope scaling that nothing here can play.
        MetadataError: a key is missing or has another type.
    """
    kind = meta.string("model_type")
    if kind not in FAMILIES:
        raise UnsupportedModelError(
            f"a model of type '{kind}' was asked for; there are {', '.join(FAMILIES)}"
        )
    name = FAMILIES[kind]
    if name == "bert":
        return _bert(meta)
    if name == "nomic-bert":
        return _nomic(meta)
    layers, width = meta.integer("num_hidden_layers"), meta.integer("hidden_size")
    heads = meta.integer("num_attention_heads")
    head = meta.integer("head_dim", width // heads)
    gemma = name.startswith("gemma")
    scale = attention_scale(name, layers, width, heads, head)
    return Config(
        architecture=name,
        layers=layers,
        width=width,
        heads=heads,
        groups=meta.integer("num_key_value_heads", heads),
        head=head,
        hidden=meta.integer("intermediate_size"),
        vocabulary=meta.integer("vocab_size"),
        context=meta.integer("max_position_embeddings"),
        eps=meta.number("rms_norm_eps"),
        attention_scale=meta.number("query_pre_attn_scalar") ** -0.5 if gemma else scale,
        rope=rotation(meta, head, "full_attention"),
        local_rope=rotation(meta, head, "sliding_attention") if name == "gemma3" else None,
        windows=_windows(meta, name, layers),
        attention_softcap=meta.number("attn_logit_softcapping", 0.0),
        logit_softcap=meta.number("final_logit_softcapping", 0.0),
        embedding_scale=math.sqrt(width) if gemma else 1.0,
    )


def _bert(meta: Metadata) -> Config:
    width, heads = meta.integer("hidden_size"), meta.integer("num_attention_heads")
    return Config(
        architecture="bert",
        layers=meta.integer("num_hidden_layers"),
        width=width,
        heads=heads,
        groups=heads,
        head=width // heads,
        hidden=meta.integer("intermediate_size"),
        vocabulary=meta.integer("vocab_size"),
        context=meta.integer("max_position_embeddings"),
        eps=meta.number("layer_norm_eps"),
        attention_scale=(width // heads) ** -0.5,
        rope=None,
        causal=False,
        pooling="mean",
    )


def _nomic(meta: Metadata) -> Config:
    width, heads = meta.integer("n_embd"), meta.integer("n_head")
    head = width // heads
    f = ropes.plain(
        meta.number("rotary_emb_base", 10000.0), int(head * meta.number("rotary_emb_fraction", 1.0))
    )
    return Config(
        architecture="nomic-bert",
        layers=meta.integer("n_layer"),
        width=width,
        heads=heads,
        groups=heads,
        head=head,
        hidden=meta.integer("n_inner"),
        vocabulary=meta.integer("vocab_size"),
        context=meta.integer("n_positions"),
        eps=meta.number("layer_norm_epsilon"),
        attention_scale=head**-0.5,
        rope=Rope(tuple(map(float, f)), interleaved=False),
        causal=False,
        pooling="mean",
    )


def rotation(meta: Metadata, head: int, layer_type: str) -> Rope:
    """Rotary positions; newer files keep them in `rope_parameters`, per layer type where those differ."""
    parameters = _mapping(meta, "rope_parameters")
    if layer_type in parameters:
        parameters = parameters[layer_type]
    scaling = parameters or _mapping(meta, "rope_scaling")
    local = layer_type == "sliding_attention"
    default = meta.number("rope_local_base_freq", 10000.0) if local else meta.number("rope_theta", 10000.0)
    base = float(parameters.get("rope_theta", default))
    if local and not parameters:
        scaling = cast("Mapping[str, Any]", {})
    n = int(head * meta.number("partial_rotary_factor", float(scaling.get("partial_rotary_factor", 1.0))))
    f, kind = ropes.plain(base, n), scaling.get("rope_type", scaling.get("type", "default"))
    factor, context = float(scaling.get("factor", 1.0)), meta.integer("max_position_embeddings")
    original = int(
        scaling.get(
            "original_max_position_embeddings", meta.integer("original_max_position_embeddings", context)
        )
    )
    scale = 1.0
    if kind == "llama3":
        f = ropes.llama3(f, factor, scaling["low_freq_factor"], scaling["high_freq_factor"], original)
    elif kind == "linear":
        f = f / factor
    elif kind == "yarn":
        fast, slow = float(scaling.get("beta_fast") or 32), float(scaling.get("beta_slow") or 1)
        f = ropes.yarn(f, base, factor, original, fast, slow)
        scale = float(scaling.get("attention_factor") or ropes.yarn_scale(factor))
    elif kind in ("longrope", "su"):
        f = ropes.divided(f, scaling["long_factor" if context > original else "short_factor"])
        scale = float(scaling.get("attention_factor") or ropes.longrope_scale(context / original, original))
    elif kind != "default":
        raise UnsupportedModelError(
            f"'{meta.source}' scales its positions by '{kind}'; there are llama3, linear, yarn and longrope"
        )
    return Rope(tuple(map(float, f)), interleaved=False, scale=scale)


def _mapping(meta: Metadata, key: str) -> Mapping[str, Any]:
    value = meta.get(key)
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def _windows(meta: Metadata, name: str, layers: int) -> tuple[int, ...]:
    window = meta.integer("sliding_window", 0)
    if not window or (name.startswith("qwen") and not meta.boolean("use_sliding_window", False)):
        return ()
    if meta.has("layer_types"):
        types = meta.strings("layer_types")
        return tuple(window if kind == "sliding_attention" else 0 for kind in types)
    period = {"gemma2": 2, "gemma3": meta.integer("sliding_window_pattern", 6)}.get(name, 0)
    return tuple(0 if period and (i + 1) % period == 0 else window for i in range(layers))


NAMES = (
    (r"model\.embed_tokens\.weight", "token_embd.weight"),
    (r"model\.norm\.weight", "output_norm.weight"),
    (r"lm_head\.weight", "output.weight"),
    (r"model\.layers\.(\d+)\.input_layernorm\.weight", r"blk.\1.attn_norm.weight"),
    (r"model\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)", r"blk.\1.attn_\2.\3"),
    (r"model\.layers\.(\d+)\.self_attn\.qkv_proj\.weight", r"blk.\1.attn_qkv.weight"),
    (r"model\.layers\.(\d+)\.self_attn\.o_proj\.weight", r"blk.\1.attn_output.weight"),
    (r"model\.layers\.(\d+)\.self_attn\.([qk])_norm\.weight", r"blk.\1.attn_\2_norm.weight"),
    (r"model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj\.weight", r"blk.\1.ffn_\2.weight"),
    (r"model\.layers\.(\d+)\.mlp\.gate_up_proj\.weight", r"blk.\1.ffn_up.weight"),
    (r"model\.layers\.(\d+)\.pre_feedforward_layernorm\.weight", r"blk.\1.ffn_norm.weight"),
    (r"model\.layers\.(\d+)\.post_feedforward_layernorm\.weight", r"blk.\1.post_ffw_norm.weight"),
    (r"embeddings\.word_embeddings\.weight", "token_embd.weight"),
    (r"embeddings\.position_embeddings\.weight", "position_embd.weight"),
    (r"embeddings\.token_type_embeddings\.weight", "token_types.weight"),
    (r"(?:embeddings\.LayerNorm|emb_ln)\.(weight|bias)", r"token_embd_norm.\1"),
    (r"encoder\.layer\.(\d+)\.attention\.self\.(q|k|v)\w+\.(weight|bias)", r"blk.\1.attn_\2.\3"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(weight|bias)", r"blk.\1.attn_output.\2"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.(weight|bias)", r"blk.\1.attn_output_norm.\2"),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.(weight|bias)", r"blk.\1.ffn_up.\2"),
    (r"encoder\.layer\.(\d+)\.output\.dense\.(weight|bias)", r"blk.\1.ffn_down.\2"),
    (r"encoder\.layer\.(\d+)\.output\.LayerNorm\.(weight|bias)", r"blk.\1.layer_output_norm.\2"),
    (r"encoder\.layers\.(\d+)\.attn\.Wqkv\.weight", r"blk.\1.attn_qkv.weight"),
    (r"encoder\.layers\.(\d+)\.attn\.out_proj\.weight", r"blk.\1.attn_output.weight"),
    (r"encoder\.layers\.(\d+)\.norm1\.(weight|bias)", r"blk.\1.attn_output_norm.\2"),
    (r"encoder\.layers\.(\d+)\.norm2\.(weight|bias)", r"blk.\1.layer_output_norm.\2"),
    (r"encoder\.layers\.(\d+)\.mlp\.fc11\.weight", r"blk.\1.ffn_up.weight"),
    (r"encoder\.layers\.(\d+)\.mlp\.fc12\.weight", r"blk.\1.ffn_gate.weight"),
    (r"encoder\.layers\.(\d+)\.mlp\.fc2\.weight", r"blk.\1.ffn_down.weight"),
)
"""Hugging Face names as patterns, with what GGUF calls the same tensor."""

PREFIXES = ("", "language_model.", "bert.", "model.language_model.")


def gguf_name(name: str, architecture: str) -> str | None:
    """What GGUF calls a tensor; None for one that playing does not need (a pooler, a vision tower)."""
    for prefix in PREFIXES:
        if not name.startswith(prefix):
            continue
        rest = name.removeprefix(prefix)
        rest = f"model.{rest}" if prefix == "model.language_model." else rest
        for pattern, replacement in NAMES:
            if re.fullmatch(pattern, rest):
                return re.sub(pattern, replacement, rest)
        norm = re.fullmatch(r"model\.layers\.(\d+)\.post_attention_layernorm\.weight", rest)
        if norm:  # the same name before the MLP in Llama and after attention in Gemma
            which = "post_attention_norm" if architecture.startswith("gemma") else "ffn_norm"
            return f"blk.{norm[1]}.{which}.weight"
    return None


def is_offset_norm(name: str, architecture: str) -> bool:
    """Gemma's files store norm weights less 1; GGUF stores them whole."""
    return architecture.startswith("gemma") and name.endswith("norm.weight")
