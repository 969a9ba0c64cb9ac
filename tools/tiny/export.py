"""Write the tiny model as GGUF: Q8_0 matrices, F32 norms, its tokenizer and chat template.

python tools/tiny/export.py CORPUS TRAINED src/nocopy/models/tiny.gguf
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nocopy.models.ggml import GGMLType
from nocopy.models.gguf_writer import TensorData, write_gguf

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NORMAL, CONTROL = 1, 3  # token types, as GGUF numbers them


def tokenizer(path: Path) -> dict[str, object]:
    """Metadata for the vocabulary that corpus.py trained."""
    found = json.loads(path.read_text())
    vocabulary = sorted(found["model"]["vocab"].items(), key=lambda item: item[1])
    special = {token["content"]: token["id"] for token in found["added_tokens"]}
    merges = [m if isinstance(m, str) else " ".join(m) for m in found["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [text for text, _ in vocabulary],
        "tokenizer.ggml.token_type": np.array(
            [CONTROL if text in special else NORMAL for text, _ in vocabulary], np.int32
        ),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": special["<|end|>"],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }


def shape(facts: dict[str, Any]) -> dict[str, object]:
    """Metadata for the shape that train.py trained."""
    head = facts["width"] // facts["heads"]
    return {
        "general.architecture": "llama",
        "general.name": "nocopy tiny",
        "general.license": "PSF-2.0",
        "general.description": "A demonstration: trained on the Python standard library's sources.",
        "llama.block_count": facts["layers"],
        "llama.context_length": facts["context"],
        "llama.embedding_length": facts["width"],
        "llama.feed_forward_length": facts["hidden"],
        "llama.attention.head_count": facts["heads"],
        "llama.attention.head_count_kv": facts["groups"],
        "llama.attention.layer_norm_rms_epsilon": float(facts["eps"]),
        "llama.rope.freq_base": float(facts["base"]),
        "llama.rope.dimension_count": head,
        "llama.vocab_size": facts["vocabulary"],
    }


def interleaved(weight: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Rows of a q or k projection in the order of GGUF's llama: pairs (i, i + head/2) become (2i, 2i + 1)."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def main() -> None:
    corpus, trained, out = map(Path, sys.argv[1:4])
    facts = json.loads((trained / "training.json").read_text())
    tensors: list[TensorData] = []
    with np.load(trained / "model.npz") as weights:
        for name in weights:
            values = weights[name].astype(np.float32)
            if name.endswith("attn_q.weight"):
                values = interleaved(values, facts["heads"])
            if name.endswith("attn_k.weight"):
                values = interleaved(values, facts["groups"])
            kind = GGMLType.Q8_0 if values.ndim == 2 else GGMLType.F32
            tensors.append(TensorData.of(name, values, kind))
    write_gguf(out, shape(facts) | tokenizer(corpus / "tokenizer.json"), tensors)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
