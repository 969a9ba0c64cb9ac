"""What the first answer of a new session takes on a CUDA device, beside the same answer again.

python bench/cuda_first.py [--type bf16|...] [--sessions N] [--json FILE]

Sessions of one model, each in memory of its own, one after another and all open; each reads a prompt of a
length that none had before, then draws 32 likeliest tokens, then does the same again. What differs is what
compiling its passes takes: of the first sessions they are planned, later ones take over what was planned.
The model has the shape of Llama 3.2 1B and noise for weights; kernels are compiled beforehand.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from cuda_decode import MIXES, TYPES, feed_ahead, open_gpu, row, rows

from nocopy.bench.llama import model_file
from nocopy.memory.dtype import DType
from nocopy.models.load import open_model
from nocopy.session.engine import Engine
from nocopy.session.own import OwnSession

PROMPT, ANSWER, CONTEXT = 100, 32, 1024


def milliseconds(session: OwnSession, prompt: list[int]) -> tuple[float, float]:
    """What the prompt takes, and the answer."""
    session.truncate(0)
    start = time.perf_counter()
    session.append(prompt)
    read = time.perf_counter()
    feed_ahead(session, ANSWER)
    return 1e3 * (read - start), 1e3 * (time.perf_counter() - read)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--type", default="bf16", choices=(*TYPES, *MIXES))
    parser.add_argument("--sessions", type=int, default=4)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    device = open_gpu()
    model = open_model(model_file((TYPES | MIXES)[chosen.type]))
    tokens = np.random.default_rng(1).integers(0, model.config.vocabulary, 2 * PROMPT).tolist()
    warm = Engine(model, device)  # compiles the kernels, and goes with its tapes
    with OwnSession(warm, context=CONTEXT, kv=DType.F16) as session:
        milliseconds(session, tokens[:PROMPT])
    warm.close()
    print(device.info.product, flush=True)
    engine = Engine(model, device)
    opened: list[OwnSession] = []
    for i in range(chosen.sessions):
        start = time.perf_counter()
        opened.append(OwnSession(engine, context=CONTEXT, kv=DType.F16))
        row(f"session {i + 1}: opened", 1e3 * (time.perf_counter() - start), "ms")
        for when in ("first", "again"):
            prompt, answer = milliseconds(opened[i], tokens[: PROMPT - i])
            row(f"session {i + 1}: {PROMPT - i} tokens read, {when}", prompt, "ms")
            row(f"session {i + 1}: {ANSWER} tokens drawn, {when}", answer, "ms")
    for session in opened:
        session.close()
    engine.close()
    device.close()
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
