"""Tokens 129 to 1,024 of a session, which a guest asks for in one call, beside Python on a CUDA device.

python bench/cuda_guest.py [--type bf16|...] [--json FILE]

The model has the shape of Llama 3.2 1B (1.24 B parameters) and noise for weights; the cache is f16. Each
side reads a prompt of 128 tokens, then draws the likeliest 896 with the same engine, which must be the same
ones; Python asks for each by itself. What a token takes is the time of both over 896: the median of rounds
in which the two take turns. The share is that of the time to read the weights once, at the speed at which
a kernel reads 4 GiB.
"""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from pathlib import Path

import numpy as np
from cuda_decode import MIXES, TYPES, open_gpu, row, rows

from nocopy.bench.cuda_read import read_bandwidth
from nocopy.bench.guest_decode import Inside, Outside
from nocopy.bench.llama import model_file, read_a_token
from nocopy.bench.timing import interleaved
from nocopy.interfaces.loaded import keep_loaded

PROMPT, COUNT, CONTEXT = 128, 896, 1024
SECONDS = 15.0
"""For both together."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--type", default="bf16", choices=(*TYPES, *MIXES))
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    device = open_gpu()
    path = model_file((TYPES | MIXES)[chosen.type])
    print(device.info.product, flush=True)
    with keep_loaded(path, device) as loaded:
        config = loaded.model.config
        prompt = np.random.default_rng(1).integers(0, config.vocabulary, PROMPT).tolist()
        floor = 1e3 * read_a_token(loaded.model) / read_bandwidth(device.driver)
        with (
            closing(Inside(device, path, context=CONTEXT, prompt=prompt)) as inside,
            closing(Outside(loaded, context=CONTEXT, prompt=prompt)) as outside,
        ):
            sides = {
                "guest": lambda: inside.decode(COUNT, COUNT),
                "python": lambda: outside.decode(COUNT, COUNT),
            }
            times = {name: 1e3 * t / COUNT for name, t in interleaved(sides, seconds=SECONDS).items()}
            if inside.tokens(COUNT) != outside.tokens:
                raise SystemExit("the guest and Python drew other tokens from the same model")
    row("weights read once", floor, "ms")
    row("a guest, one call", times["guest"], "ms a token")
    row("share of the memory's speed", 100 * floor / times["guest"], "%")
    row("Python, a token at a time", times["python"], "ms a token")
    row("guest over Python", times["python"] / times["guest"], "")
    device.close()
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
