"""Reading a prompt with a model of 1.24 B parameters: tokens per second for prompts of 64 and 512.

Beside `llama-bench` where there is one, else beside the device's own f32 product of 1024 x 1024 matrices: the
rate of multiply-adds that a prompt could have.
"""

from __future__ import annotations

from time import perf_counter

from nocopy.bench import matmul, peer_llama
from nocopy.bench.llama import LLAMA_1B, model_file, session, tokens
from nocopy.bench.result import Row, row
from nocopy.bench.runner import Progress, silent
from nocopy.device.protocol import Device
from nocopy.models.ggml import GGMLType
from nocopy.session.session import Session

KINDS = (GGMLType.BF16, GGMLType.Q4_0)
PROMPTS = (64, 512)
TURNS = 5


def rows(device: Device, *, progress: Progress = silent) -> list[Row]:
    """Measure each of `KINDS` and `PROMPTS`: the best of `TURNS`; the unit is tokens per second."""
    program = peer_llama.find()
    peer = "llama.cpp" if program else "product"
    bound = 0.0 if program else matmul.rate(device) * 1e9 / (2 * LLAMA_1B.multiply_adds)
    found: list[Row] = []
    for i, kind in enumerate(KINDS):
        with session(device, kind, max(PROMPTS)) as s:
            for j, prompt in enumerate(PROMPTS):
                progress(f"{kind.name.lower()}, {prompt} tokens", (i + j / len(PROMPTS)) / len(KINDS))
                ours = theirs = 0.0
                for _ in range(TURNS):
                    ours = max(ours, _prefill(s, prompt))
                    theirs = max(theirs, _peer(program, kind, prompt) if program else bound)
                found.append(row(f"prefill {prompt} {kind.name.lower()}", ours, "1/s", peer, theirs))
    return found


def _prefill(s: Session, prompt: int) -> float:
    s.truncate(0)
    start = perf_counter()
    s.append(tokens(prompt))
    return prompt / (perf_counter() - start)


def _peer(program: str, kind: GGMLType, prompt: int) -> float:
    return peer_llama.tokens_per_second(program, model_file(kind), prompt=prompt, times=1)
