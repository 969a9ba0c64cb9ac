"""How far a prompt's logits lie from float32's, beside transformers in bf16.

python bench/cuda_prefill_fidelity.py [--length 512] [--prompts 8] [--no-library] [--json FILE]

It needs torch, transformers and a GPU. A llama of 8 layers (width 1024, 16 heads in 4 groups, 4096 tokens)
with weights as transformers begins a training with, rounded to bf16. For each prompt of random tokens the
logits after its last token, three times: transformers in float32 (what is right), transformers in bf16, and
this CUDA device with the bf16 weights and caches of three types. An error is the root mean square of the
difference, relative to that of the right logits; the mean over the prompts.
"""

# torch says little about its types.
# pyright: standard

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from cuda_decode import open_gpu

from nocopy.memory.dtype import DType
from nocopy.models.load import open_model
from nocopy.session.engine import Engine
from nocopy.session.own import OwnSession

VOCABULARY, CONTEXT = 4096, 4096
rows: list[dict[str, Any]] = []


def row(case: str, value: float, unit: str) -> None:
    rows.append({"case": case, "value": value, "unit": unit})
    print(f"{case:56} {value:12.3e} {unit}", flush=True)


def oracle() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=1024, intermediate_size=2816, num_hidden_layers=8,
        num_attention_heads=16, num_key_value_heads=4, max_position_embeddings=CONTEXT,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
    )  # fmt: skip
    model: Any = transformers.LlamaForCausalLM(config)
    return model.eval().to(torch.bfloat16)


def opened(folder: str, dtype: Any) -> Any:
    """Opened anew: a model that is cast keeps frequencies that were rounded with it."""
    model: Any = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
    return model.eval().to("cuda")


def last_logits(model: Any, tokens: list[int]) -> Any:
    with torch.no_grad():
        found = model(torch.tensor([tokens], device=model.device)).logits[0, -1]
    return found.float().cpu().numpy().astype(np.float64)


def error(found: Any, right: Any) -> float:
    return float(np.sqrt(np.mean((found - right) ** 2) / np.mean(right**2)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--no-library", action="store_true")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    half = oracle()
    rng = np.random.default_rng(1)
    prompts = [rng.integers(3, VOCABULARY, chosen.length).tolist() for _ in range(chosen.prompts)]
    with tempfile.TemporaryDirectory() as folder:
        half.save_pretrained(folder)
        theirs, right = (
            [last_logits(model, p) for model in [opened(folder, dtype)] for p in prompts]
            for dtype in (torch.bfloat16, torch.float32)
        )
        device = open_gpu(library=not chosen.no_library)
        print(device.info.product, device.info.details["products"], flush=True)
        model = open_model(Path(folder))
        engine = Engine(model, device)
        for kv in (DType.F16, DType.BF16, DType.F32):
            with OwnSession(engine, context=CONTEXT, kv=kv) as session:
                ours = []
                for prompt in prompts:
                    session.truncate(0)
                    session.append(prompt)
                    ours.append(np.asarray(session.logits, np.float64))
            pairs = zip(ours, right, strict=True)
            row(f"ours, cache {kv.name.lower()}", float(np.mean([error(o, r) for o, r in pairs])), "")
        pairs = zip(theirs, right, strict=True)
        row("transformers in bf16", float(np.mean([error(o, r) for o, r in pairs])), "")
        engine.close()
        model.close()
        device.close()
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
