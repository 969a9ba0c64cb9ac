"""How near logits on CUDA are to float32, beside transformers in bf16; and whether greedy tokens agree.

python bench/cuda_fidelity.py [--json FILE] [--show FILE]

The truth is transformers in float32 with the same weights, fed the same tokens. Three models: the shape of
Llama 3.2 1B with noise for weights; the trained tiny model with its matrices in bf16; and the same as it
ships, in Q8_0, where transformers gets the decoded weights, rounded to bf16. "prefill" are the logits after
prompts of several lengths that are read in one go, "decode" those after each of 64 tokens that follow one by
one. An error is a difference from the truth over the truth's root mean square: `rms` is its root mean square
over all logits of all positions, `max` the largest of one logit. `--device cpu --small` tries the script
where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import closing
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from peers import report
from peers.ours import Ours
from peers.transformers_llama import Runner, feed, load

from nocopy.bench.llama import LLAMA_1B, Shape, model_file, open_session, tokens
from nocopy.bench.machine import describe
from nocopy.device.discovery import open_device
from nocopy.device.protocol import Device
from nocopy.models.ggml import GGMLType
from nocopy.models.gguf_writer import TensorData, write_gguf
from nocopy.models.load import open_model
from nocopy.models.model import Model
from nocopy.session.session import Session

SMALL = Shape("llama-small", 2, 256, 4, 2, 64, 512, 1024, tied=True)
PROMPTS = (1, 16, 100, 256, 512)
STEPS = 64
TEXT = '''def mean(values):
    """Return the arithmetic mean of a sequence of numbers."""
    total = 0.0
    for value in values:
        total += value
    return total / len(values)


class Stack:
    """A last-in, first-out list."""

    def __init__(self):
        self.items = []

    def push(self, item):
        """Add an item to the top."""
        self.items.append(item)

    def pop(self):
'''
"""What the trained model reads, over and over."""

Logits = npt.NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="a small model in place of that of 1.24 B")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--show", type=Path, help="a result to print as Markdown; nothing is measured")
    chosen = parser.parse_args()
    result = (
        json.loads(chosen.show.read_text()) if chosen.show else measure(chosen.device, small=chosen.small)
    )
    if chosen.json:
        chosen.json.write_text(json.dumps(result, indent=1) + "\n")
    print(report.fidelity(result))


@torch.inference_mode()
def measure(device: str, *, small: bool) -> dict[str, Any]:
    """All rows."""
    torch.backends.cuda.matmul.allow_tf32 = False
    rows: list[dict[str, Any]] = []
    with closing(open_device(device)) as opened, TemporaryDirectory() as folder:
        for name, path in models(Path(folder), small=small):
            with closing(open_model(path)) as model:
                rows += compared(name, path, model, opened, device)
        machine = describe(opened.info)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"name": "cuda_fidelity", "device": device, "machine": machine | versions, "rows": rows}


def models(folder: Path, *, small: bool) -> Iterator[tuple[str, Path]]:
    """The models by name."""
    yield "1.24 B, noise, bf16", model_file(GGMLType.BF16, shape=SMALL if small else LLAMA_1B)
    shipped = Path(str(resources.files("nocopy") / "models" / "tiny.gguf"))
    dense = folder / "tiny-bf16.gguf"
    with closing(open_model(shipped)) as model:
        write_gguf(dense, dict(model.metadata), [in_bf16(model, name) for name in model.weights])
    yield "tiny, trained, bf16", dense
    yield "tiny, trained, Q8_0", shipped


def in_bf16(model: Model, name: str) -> TensorData:
    """A tensor of a model: matrices in bf16, norms in f32."""
    values = model.weights.dequantize(name)
    return TensorData.of(name, values, GGMLType.BF16 if values.ndim == 2 else GGMLType.F32)


def compared(name: str, path: Path, model: Model, device: Device, kind: str) -> Iterator[dict[str, Any]]:
    """Rows of one model: prefill, decode, and greedy tokens if it is trained."""
    longest = max(PROMPTS)
    trained = "trained" in name
    fed = text(model, longest + STEPS) if trained else tokens(longest + STEPS, model.config.vocabulary)
    exact = load(model, kind, torch.float32)
    rough = load(model, kind, torch.bfloat16)
    ends = [length - 1 for length in PROMPTS]
    after = list(range(longest, longest + STEPS))
    truth = whole(exact, fed, kind)
    with open_session(device, path, len(fed)) as session:
        ours = {"prefill": prefilled(session, fed), "decode": decoded(session, fed[longest:])}
        theirs = {
            "prefill": np.stack([whole(rough, fed[:length], kind)[-1] for length in PROMPTS]),
            "decode": stepped(rough, fed, longest, kind),
        }
        for case, at in (("prefill", ends), ("decode", after)):
            row = {"case": f"{name}: {case}", **errors(ours[case], truth[at], "nocopy")}
            yield row | errors(theirs[case], truth[at], "transformers bf16")
        if trained:
            yield agreement(name, session, (exact, rough), fed[: longest // 2], kind)


def text(model: Model, count: int) -> list[int]:
    """Tokens of `TEXT`, repeated."""
    found = model.tokenizer.encode(TEXT)
    return (found * (count // len(found) + 1))[:count]


def whole(model: transformers.LlamaForCausalLM, fed: list[int], kind: str) -> Logits:
    """Logits of every position of a prompt."""
    return model(torch.tensor([fed], device=kind)).logits[0].float().cpu().numpy()


def stepped(model: transformers.LlamaForCausalLM, fed: list[int], first: int, kind: str) -> Logits:
    """Logits after each token from `first` on, fed one by one."""
    cache = transformers.DynamicCache(config=model.config)
    feed(model, torch.tensor([fed[:first]], device=kind), cache)
    found: list[Logits] = []
    for token in fed[first:]:
        made = feed(model, torch.tensor([[token]], device=kind), cache)
        found.append(made[0, -1].float().cpu().numpy())
    return np.stack(found)


def prefilled(session: Session, fed: list[int]) -> Logits:
    """Logits after prompts of each length; the session ends with the longest."""
    found: list[Logits] = []
    for length in PROMPTS:
        session.truncate(0)
        session.append(fed[:length])
        found.append(session.logits.copy())
    return np.stack(found)


def decoded(session: Session, fed: list[int]) -> Logits:
    """Logits after each token."""
    found: list[Logits] = []
    for token in fed:
        session.append([token])
        found.append(session.logits.copy())
    return np.stack(found)


def errors(found: Logits, truth: Logits, who: str) -> dict[str, float]:
    """The errors that the module describes."""
    scale = np.sqrt(np.mean(np.square(truth, dtype=np.float64)))
    difference = np.abs(found.astype(np.float64) - truth)
    rms = np.sqrt(np.mean(np.square(difference))) / scale
    return {f"{who}, rms": float(f"{rms:.4g}"), f"{who}, max": float(f"{difference.max() / scale:.4g}")}


def agreement(
    name: str,
    session: Session,
    models: tuple[transformers.LlamaForCausalLM, transformers.LlamaForCausalLM],
    prompt: list[int],
    kind: str,
) -> dict[str, Any]:
    """How many of `STEPS` greedy tokens, from the first on, are those of float32."""
    truth, theirs = (drawn(Runner(model, kind), prompt) for model in models)
    ours = drawn(Ours(session), prompt)
    return {
        "case": f"{name}: greedy tokens of {STEPS} that agree with float32",
        "nocopy": same(ours, truth),
        "transformers bf16": same(theirs, truth),
    }


def drawn(contender: Ours | Runner, prompt: list[int]) -> list[int]:
    """Greedy tokens after a prompt."""
    contender.read(prompt)
    return contender.generate(STEPS)


def same(a: list[int], b: list[int]) -> int:
    """Length of the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))


if __name__ == "__main__":
    main()
