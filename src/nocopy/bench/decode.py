"""Decoding with a model of 1.24 B parameters: tokens per second, one sequence, 64 tokens in the cache.

Beside `llama-bench` where there is one (see `peer_llama`): the same file, the same cores, turn by turn. Else
beside the bound: each token reads every weight once, so no device that reads b bytes a second makes more than
b / (bytes of the weights) tokens.
"""

from __future__ import annotations

from time import perf_counter

from nocopy.bench import peer_llama
from nocopy.bench.llama import bandwidth, model_file, session, tokens
from nocopy.bench.result import Row, row
from nocopy.bench.runner import Progress, silent
from nocopy.device.protocol import Device
from nocopy.models.ggml import GGMLType
from nocopy.session.session import Session

KINDS = (GGMLType.BF16, GGMLType.Q8_0, GGMLType.Q4_0)
PROMPT, STEPS, TURNS = 64, 24, 5


def rows(device: Device, *, progress: Progress = silent) -> list[Row]:
    """Measure each of `KINDS`: the best of `TURNS` for both sides; the unit is tokens per second."""
    program = peer_llama.find()
    found: list[Row] = []
    for i, kind in enumerate(KINDS):
        progress(f"{kind.name.lower()}, 1.24 B parameters", i / len(KINDS))
        ours = theirs = 0.0
        with session(device, kind, PROMPT + STEPS) as s:
            nbytes = s.engine.model.weights.nbytes
            for _ in range(TURNS):
                ours = max(ours, _decode(s))
                theirs = max(theirs, _peer(program, kind) if program else bandwidth(device) / nbytes)
        peer = "llama.cpp" if program else "memory bandwidth"
        found.append(row(f"decode {kind.name.lower()}", ours, "1/s", peer, theirs))
    return found


def _decode(s: Session) -> float:
    """Tokens per second over `STEPS` tokens that follow a prompt."""
    fed = tokens(PROMPT + STEPS)
    s.extend_to(fed[:PROMPT])
    start = perf_counter()
    for token in fed[PROMPT:]:
        s.append([token])
    return STEPS / (perf_counter() - start)


def _peer(program: str, kind: GGMLType) -> float:
    return peer_llama.tokens_per_second(program, model_file(kind), generate=STEPS)
