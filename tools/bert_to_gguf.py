"""Write an embedding model of the BERT family as GGUF, from the folder in which Hugging Face stores it.

python tools/bert_to_gguf.py FOLDER OUT.gguf [--type f32|f16|bf16|q8_0]

`nocopy` plays the folder itself; this is for other hosts, which want one file, and halves the size with f16.
The names and keys are those that llama.cpp reads. Matrices get the type; vectors and norms stay f32.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from nocopy.errors import Error, UnsupportedModelError
from nocopy.models import Model, open_model
from nocopy.models.config_gguf import POOLING
from nocopy.models.ggml import GGMLType
from nocopy.models.gguf_writer import TensorData, write_gguf
from nocopy.models.tokenizer_wordpiece import CONTINUATION, WORD
from nocopy.models.vocabulary import PREFIX, SPECIAL_KEYS, TokenType

TYPES = {name.lower(): GGMLType[name] for name in ("F32", "F16", "BF16", "Q8_0")}

SPECIAL = {"cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]", "pad": "[PAD]", "mask": "[MASK]"}
"""BERT's special tokens, by the roles that GGUF has keys for."""


def shape(model: Model, name: str) -> dict[str, object]:
    """Metadata for the model's shape."""
    c = model.config
    return {
        "general.architecture": c.architecture,
        "general.name": name,
        "bert.block_count": c.layers,
        "bert.context_length": c.context,
        "bert.embedding_length": c.width,
        "bert.feed_forward_length": c.hidden,
        "bert.attention.head_count": c.heads,
        "bert.attention.layer_norm_epsilon": float(c.eps),
        "bert.attention.causal": False,
        "bert.pooling_type": next(n for n, word in POOLING.items() if word == c.pooling),
    }


def tokenizer(model: Model) -> dict[str, object]:
    """Metadata for its WordPiece vocabulary: words get a mark, where BERT's own files mark the rest."""
    found: dict[str, Any] = json.loads((model.path / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    if found["type"] != "WordPiece" or found["continuing_subword_prefix"] != CONTINUATION:
        raise UnsupportedModelError(
            f"'{model.path}' has a tokenizer of kind {found['type']}; BERT's is WordPiece"
        )
    tokens = sorted(found["vocab"], key=lambda text: found["vocab"][text])
    named = {role: model.tokenizer.token_id(text) for role, text in SPECIAL.items()}
    special = {role: token for role, token in named.items() if token is not None}
    control = set(special.values()) - {special["unk"]}
    kinds = {**dict.fromkeys(control, TokenType.CONTROL), special["unk"]: TokenType.UNKNOWN}
    return {
        PREFIX + "model": "bert",
        PREFIX + "pre": "default",
        PREFIX + "tokens": [marked(text) for text in tokens],
        PREFIX + "token_type": np.array(
            [kinds.get(token, TokenType.NORMAL) for token in range(len(tokens))], np.int32
        ),
        PREFIX + "token_type_count": model.weights["token_types.weight"].shape[0],
        **{PREFIX + SPECIAL_KEYS[role][0]: token for role, token in special.items()},
        PREFIX + "bos_token_id": special["cls"],
        PREFIX + "eos_token_id": special["sep"],
    }


def marked(text: str) -> str:
    """A token as GGUF writes it."""
    if text.startswith("[") and text.endswith("]"):
        return text
    return text.removeprefix(CONTINUATION) if text.startswith(CONTINUATION) else WORD + text


def convert(folder: Path, out: Path, kind: GGMLType) -> int:
    """Write the file; return its bytes.

    Raises:
        UsageError, ModelError: the folder holds no such model.
    """
    model = open_model(folder)
    try:
        if model.config.architecture != "bert":
            raise UnsupportedModelError(f"'{folder}' holds a {model.config.architecture} model, not a BERT")
        tensors = [
            TensorData.of(
                name,
                model.weights.dequantize(name),
                kind
                if len(weight.shape) == 2 and not name.startswith(("position", "token_types"))
                else GGMLType.F32,
            )
            for name, weight in model.weights.items()
        ]
        write_gguf(out, shape(model, folder.name) | tokenizer(model), tensors)
    finally:
        model.close()
    return out.stat().st_size


def main() -> int:
    parser = argparse.ArgumentParser(description="Write a BERT model as GGUF.")
    parser.add_argument("folder", type=Path, help="with config.json, model.safetensors and tokenizer.json")
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", choices=TYPES, default="f16", help="of the matrices")
    options = parser.parse_args()
    try:
        size = convert(options.folder, options.out, TYPES[options.type])
    except Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
