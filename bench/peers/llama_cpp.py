"""llama.cpp through its own `llama-bench`, with flash attention. Its tokens are random: nothing is drawn."""

from __future__ import annotations

from statistics import median
from typing import Any

from nocopy.bench import peer_llama
from nocopy.bench.machine import cores

from .contender import TURNS, MissingError, Task, decode_case, found, prefill_case

TYPES = ("bf16", "q8_0", "q4_0")
BATCHES = (512, 2048)
"""Tokens that one pass of a prompt takes; the faster counts."""


def measure(task: Task) -> dict[str, Any]:
    """Time it."""
    program = peer_llama.find()
    if program is None:
        raise MissingError(
            f"llama-bench was not found; put it on PATH or name it in {peer_llama.VARIABLE}"
            " (a build with -DGGML_CUDA=ON)"
        )
    layers = 0 if task.device == "cpu" else 99
    common = {"r": TURNS, "ngl": layers, "fa": 1, "t": cores() if task.device == "cpu" else 1}
    starts, prompts = (",".join(map(str, lengths)) for lengths in (task.starts, task.prompts))
    decoded = peer_llama.run(program, task.path, common | {"p": 0, "n": task.count, "d": starts})
    backends = decoded[0]["backends"]
    if task.device == "cuda" and "CUDA" not in backends:
        raise MissingError(f"'{program}' has {backends}; name a build with -DGGML_CUDA=ON")
    batches = {"ub": ",".join(map(str, BATCHES)), "b": max(*BATCHES, *task.prompts)}
    read = peer_llama.run(program, task.path, common | batches | {"p": prompts, "n": 0})
    cases: dict[str, dict[str, Any]] = {}
    for test in decoded:
        cases[decode_case(test["n_depth"])] = {
            "value": 1e3 / median(test["samples_ts"]),
            "unit": "ms a token",
        }
    for test in read:
        case = cases.setdefault(prefill_case(test["n_prompt"]), {"value": 0.0, "unit": "tokens/s"})
        case["value"] = max(case["value"], median(test["samples_ts"]))
    how = f"llama-bench, flash attention, {backends}; no sampling"
    return found(task, f"{decoded[0]['build_commit']}", how, cases)
