"""Decoding with a model of 1.24 B parameters: tokens per second, one sequence, after 64 tokens and 4,096.

Beside `llama-bench` where there is one (see `peer_llama`): the same file, the same cores, turn by turn. Else
beside the bound: each token reads every weight and what it remembers once, so no device that reads b bytes a
second makes more than b / (those bytes) tokens.
"""

from __future__ import annotations

from time import perf_counter

from nocopy.bench import peer_llama
from nocopy.bench.llama import bandwidth, fill_with_noise, model_file, session, tokens
from nocopy.bench.result import Row, row
from nocopy.bench.runner import Progress, silent
from nocopy.device.protocol import Device
from nocopy.models.ggml import GGMLType
from nocopy.session.session import Session

BF16, Q8_0, Q4_0 = GGMLType.BF16, GGMLType.Q8_0, GGMLType.Q4_0
CASES = {
    "bf16": (BF16, 64, 5),
    "q8_0": (Q8_0, 64, 5),
    "q4_0": (Q4_0, 64, 5),
    "q4_0 after 4096": (Q4_0, 4096, 2),
}
"""Type of the weights, tokens in the cache, and turns: llama.cpp reads the tokens anew in each."""
STEPS = 24


def rows(device: Device, *, progress: Progress = silent) -> list[Row]:
    """Measure each of `CASES`: the best turn of both sides; the unit is tokens per second."""
    program = peer_llama.find()
    found: list[Row] = []
    for i, (case, (kind, length, turns)) in enumerate(CASES.items()):
        progress(f"{case}, 1.24 B parameters", i / len(CASES))
        ours = theirs = 0.0
        with session(device, kind, length + STEPS) as s:
            nbytes = s.engine.model.weights.nbytes + length * s.region.cache.token_bytes
            fill_with_noise(s, length)
            for _ in range(turns):
                ours = max(ours, _decode(s, length))
                theirs = max(theirs, _peer(program, kind, length) if program else bandwidth(device) / nbytes)
        peer = "llama.cpp" if program else "memory bandwidth"
        found.append(row(f"decode {case}", ours, "1/s", peer, theirs))
    return found


def _decode(s: Session, length: int) -> float:
    """Tokens per second over `STEPS` tokens."""
    fed = tokens(STEPS)
    start = perf_counter()
    for token in fed:
        s.append([token])
    taken = perf_counter() - start
    s.truncate(length)
    return STEPS / taken


def _peer(program: str, kind: GGMLType, length: int) -> float:
    return peer_llama.tokens_per_second(program, model_file(kind), generate=STEPS, depth=length)
