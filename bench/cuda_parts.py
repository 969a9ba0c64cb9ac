"""Where a token's time goes when a pass is one kernel: that kernel with parts of it left out.

python bench/cuda_parts.py [--type bf16|f16|q8_0|...] [--tokens N] [--json FILE]

Greedy tokens of the 1.24 B model, fed ahead, after 128 others; what is drawn means nothing where something is
left out. Without copies, or with copies of 16 bytes a row, multiplication and waiting remain; without waiting
and attention, reading and multiplication. Where copies are left out, so is what slows them down. The kernel's
sources (kernels/cuda/walk*) are changed before they are compiled; the cache on disk tells them apart.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
from cuda_decode import MIXES, TYPES, Opened, decode_ahead, open_gpu, row, rows

from nocopy.bench.cuda_read import read_bandwidth
from nocopy.bench.llama import model_file, read_a_token
from nocopy.device import cuda_compile, cuda_walk_flow
from nocopy.memory.dtype import DType
from nocopy.memory.ledger import Ledger
from nocopy.models.load import open_model

Change = tuple[str, str, str]
"""A file of the kernel's sources, what is there, and what comes in its place."""

AFTER, CONTEXT = 128, 4096
ZEROS: Change = (
    "walk.cu",
    "    __syncthreads();\n",
    "    for (uint32_t i = threadIdx.x; i < walk.slots * walk.slot_bytes / 4; i += blockDim.x)\n"
    "        ((uint32_t*)shared.ring)[i] = 0;\n    __syncthreads();\n",
)
"""Weights that never come are zeros, so that logits are numbers."""
SMALL: tuple[Change, ...] = (
    (
        "walk_stream.cuh",
        "first_row() * stride,\n                            bytes);",
        "first_row() * stride, 16);",
    ),
    (
        "walk_stream.cuh",
        "announce(filled + begin.slot, own * bytes);",
        "announce(filled + begin.slot, own * 16);",
    ),
    ZEROS,
)
NO_COPIES: tuple[Change, ...] = (
    (
        "walk_stream.cuh",
        "announce(filled + begin.slot, own * bytes);",
        "return ::arrive(filled + begin.slot);",
    ),
    ZEROS,
)
NO_WAITING: tuple[Change, ...] = (
    ("walk_stage.cuh", "return tag != NO_TAG && other & 1;", "return false;"),
    ("walk.cu", "attention(stage, shared.shares[index % TURNS]);", ";"),
)
LEFT_OUT: Mapping[str, tuple[Change, ...]] = {
    "nothing": (),
    "copies but for 16 bytes a row": SMALL,
    "copies": NO_COPIES,
    "waiting for rows, attention": NO_WAITING,
    "copies but for 16 bytes a row, waiting for rows, attention": SMALL + NO_WAITING,
    "copies, waiting for rows, attention": NO_COPIES + NO_WAITING,
}
UNHINDERED = dict.fromkeys(("PACE", "STEADY_PACE"), 0.0) | dict.fromkeys(
    ("FLIGHT_CYCLES", "BLOCKS_IN_FLIGHT", "WAITING_IN_FLIGHT"), 1 << 30
)


def changed(sources: Mapping[str, str], changes: tuple[Change, ...]) -> dict[str, str]:
    """The kernel's sources with changes, each of which must fit one place."""
    made = dict(sources)
    for name, there, instead in changes:
        if made[name].count(there) != 1:
            raise SystemExit(
                f"{name} has {made[name].count(there)} places for the change of {there!r}, not one"
            )
        made[name] = made[name].replace(there, instead)
    return made


@contextmanager
def without(changes: tuple[Change, ...]) -> Generator[None]:
    """Devices that are opened inside compile the kernel with changes."""
    made = changed(cuda_compile.kernel_sources(), changes)
    flow = UNHINDERED if ZEROS in changes else {}
    with ExitStack() as stack:
        stack.enter_context(patch.object(cuda_compile, "kernel_sources", lambda: made))
        for name, value in flow.items():
            stack.enter_context(patch.object(cuda_walk_flow, name, value))
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--type", default="bf16", choices=(*TYPES, *MIXES))
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    open_gpu().close()  # before a model is made in vain
    model = open_model(model_file((TYPES | MIXES)[chosen.type]))
    prompt = np.random.default_rng(1).integers(0, model.config.vocabulary, AFTER).tolist()
    for name, changes in LEFT_OUT.items():
        with without(changes):
            device = open_gpu()
            if not changes:
                print(device.info.product, flush=True)
                rate = read_bandwidth(device.driver)
                row("weights read once at the memory's speed", 1e3 * read_a_token(model) / rate, "ms")
            opened = Opened(model, device, CONTEXT, DType.F16, Ledger())
            taken = min(
                ms for _ in range(3) for _, ms in decode_ahead(opened.session, prompt, [AFTER], chosen.tokens)
            )
            row(f"left out: {name}", taken, "ms a token")
            opened.close()
            device.close()
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
