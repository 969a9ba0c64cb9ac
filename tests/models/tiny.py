"""A llama of some kilobytes with random weights and a real byte-level BPE tokenizer, as a GGUF file."""

from __future__ import annotations

import heapq
import json
import textwrap
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from nocopy.models.ggml import GGMLType
from nocopy.models.gguf_writer import TensorData, write_gguf
from nocopy.models.vocabulary import TokenType

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY, CONTEXT = 400, 256
LAYERS, WIDTH, HEADS, GROUPS, HEAD, HIDDEN = 2, 64, 2, 1, 32, 96
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny(path: Path, *, template: str | None = TEMPLATE, **changes: object) -> Path:
    """Write it to `path`. `changes` are metadata keys with dots written as two underscores."""
    metadata: dict[str, object] = {
        "general.architecture": "llama",
        "general.name": "Tiny",
        "llama.context_length": CONTEXT,
        "llama.block_count": LAYERS,
        "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": HIDDEN,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": GROUPS,
        "llama.attention.key_length": HEAD,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        **tokenizer_metadata(),
    }
    if template:
        metadata["tokenizer.chat_template"] = template
    metadata |= {key.replace("__", "."): value for key, value in changes.items()}
    write_gguf(path, metadata, tensors())
    return path


def tokenizer_metadata() -> dict[str, object]:
    """A vocabulary trained on the documentation of two modules."""
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False, special_tokens=list(SPECIAL)
    )
    library.train_from_iterator([heapq.__doc__ or "", textwrap.__doc__ or "", heapq.__about__], trainer)
    ids = library.get_vocab()
    tokens = sorted(ids, key=lambda text: ids[text])
    assert len(tokens) == VOCABULARY
    merges = json.loads(library.to_str())["model"]["merges"]
    types = [TokenType.CONTROL if text in SPECIAL else TokenType.NORMAL for text in tokens]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.bos_token_id": ids["<|endoftext|>"],
        "tokenizer.ggml.eos_token_id": ids["<|im_end|>"],
        "tokenizer.ggml.add_bos_token": True,
    }


def tensors() -> list[TensorData]:
    """Seeded weights, f32; the head is tied."""
    random = np.random.default_rng(7)
    shapes = {"token_embd": (VOCABULARY, WIDTH), "output_norm": (WIDTH,)}
    for i in range(LAYERS):
        shapes |= {
            f"blk.{i}.attn_norm": (WIDTH,),
            f"blk.{i}.attn_q": (HEADS * HEAD, WIDTH),
            f"blk.{i}.attn_k": (GROUPS * HEAD, WIDTH),
            f"blk.{i}.attn_v": (GROUPS * HEAD, WIDTH),
            f"blk.{i}.attn_output": (WIDTH, HEADS * HEAD),
            f"blk.{i}.ffn_norm": (WIDTH,),
            f"blk.{i}.ffn_gate": (HIDDEN, WIDTH),
            f"blk.{i}.ffn_up": (HIDDEN, WIDTH),
            f"blk.{i}.ffn_down": (WIDTH, HIDDEN),
        }
    return [
        TensorData.of(
            f"{name}.weight",
            random.normal(0, 0.3, shape).astype(np.float32) + (len(shape) == 1),
            GGMLType.F32,
        )
        for name, shape in shapes.items()
    ]
