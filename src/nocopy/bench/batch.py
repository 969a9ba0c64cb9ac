"""Decoding 1 to 8 sequences of a model of 1.24 B parameters together: tokens per second, over all of them.

Beside the same sequences one at a time on the same engine. Each has 64 tokens in its cache; tokens are the
likeliest ones, chosen on the device.
"""

from __future__ import annotations

from time import perf_counter

from nocopy.bench.llama import model_file, tokens
from nocopy.bench.result import Row, row
from nocopy.bench.runner import Progress, silent
from nocopy.device.protocol import Device
from nocopy.models.ggml import GGMLType
from nocopy.session.batch import SessionBatch
from nocopy.session.language import LanguageModel
from nocopy.session.sampler import Sampler, Sampling

KINDS = (GGMLType.BF16, GGMLType.Q8_0, GGMLType.Q4_0)
COUNTS = (1, 2, 4, 8)
PROMPT, STEPS, TURNS = 64, 16, 4


def rows(device: Device, *, progress: Progress = silent) -> list[Row]:
    """Measure each of `KINDS` with each of `COUNTS`: the best of `TURNS`; the unit is tokens per second."""
    found: list[Row] = []
    for i, kind in enumerate(KINDS):
        name = kind.name.lower()
        with (
            LanguageModel(model_file(kind), device=device, context=PROMPT + STEPS + 1) as model,
            model.batch(max(COUNTS)) as batch,
        ):
            for j, count in enumerate(COUNTS):
                progress(f"{count} sequences, {name}", (i + j / len(COUNTS)) / len(KINDS))
                best = [0.0, 0.0]
                for _ in range(TURNS):
                    both = _together(batch, count), _one_at_a_time(batch)
                    best = [max(old, new) for old, new in zip(best, both, strict=True)]
                found.append(row(f"{count} sequences {name}", best[0], "1/s", "one at a time", best[1]))
    return found


def _together(batch: SessionBatch, count: int) -> float:
    """Tokens per second of `count` sequences; the first step, which may compile, does not count."""
    for session in batch.sequences[:count]:
        session.extend_to(tokens(PROMPT))
    samplers = {i: Sampler(Sampling(temperature=0)) for i in range(count)}
    steps = batch.generate(samplers, limit=STEPS + 1)
    next(steps)
    start = perf_counter()
    made = sum(len(step) for step in steps)
    return made / (perf_counter() - start)


def _one_at_a_time(batch: SessionBatch) -> float:
    """Tokens per second of one sequence that goes on alone."""
    session = batch[0]
    session.extend_to(tokens(PROMPT))
    start = perf_counter()
    for i in range(STEPS):
        session.append([session.likeliest(STEPS - i)])
    return STEPS / (perf_counter() - start)
