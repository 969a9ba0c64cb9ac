"""What is asked of a contender, and how what it does is timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Protocol

from nocopy.bench.llama import tokens

TURNS = 5


class MissingError(Exception):
    """The contender cannot run here; the message says why, and what would help."""


@dataclass(frozen=True)
class Task:
    """One model and what to do with it.

    Args:
        path: a GGUF file.
        kind: type of its matrices: bf16, q8_0 or q4_0.
        device: "cuda", or "cpu" to try a script where there is no GPU.
        vocabulary: tokens that the model knows.
        count: greedy tokens to time.
        starts: tokens that are in the cache before those.
        prompts: lengths to read in one go.
    """

    path: Path
    kind: str
    device: str
    vocabulary: int
    count: int = 128
    starts: tuple[int, ...] = (128, 896)
    prompts: tuple[int, ...] = (512, 4096)

    @property
    def context(self) -> int:
        """Tokens that a cache must hold."""
        return max(*self.prompts, *(start + self.count for start in self.starts))

    def prompt(self, length: int) -> list[int]:
        """Tokens to read; a longer prompt begins with the shorter one."""
        return tokens(self.context, self.vocabulary)[:length]


class Contender(Protocol):
    """A program with the model loaded. `version` and `how` are for people."""

    version: str
    how: str

    def read(self, prompt: Sequence[int]) -> None:
        """Forget everything, read a prompt, and wait until that is done."""
        ...

    def generate(self, count: int) -> list[int]:
        """The next greedy tokens, each fed again; the last one too."""
        ...


def measured(contender: Contender, task: Task, *, prefill: bool = True) -> dict[str, Any]:
    """Time a contender by the wall clock: the median of `TURNS`, after one that does not count."""
    cases: dict[str, dict[str, Any]] = {}
    first: list[int] = []
    for start in task.starts:
        taken: list[float] = []
        drawn: list[int] = []
        for _ in range(TURNS + 1):
            contender.read(task.prompt(start))
            began = perf_counter()
            drawn = contender.generate(task.count)
            taken.append(perf_counter() - began)
        first = first or drawn
        cases[decode_case(start)] = {"value": 1e3 * median(taken[1:]) / task.count, "unit": "ms a token"}
    for length in task.prompts if prefill else ():
        taken, prompt = [], task.prompt(length)
        for _ in range(TURNS + 1):
            began = perf_counter()
            contender.read(prompt)
            taken.append(perf_counter() - began)
        cases[prefill_case(length)] = {"value": length / median(taken[1:]), "unit": "tokens/s"}
    return found(task, contender.version, contender.how, cases) | {"tokens": " ".join(map(str, first))}


def found(task: Task, version: str, how: str, cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What the result keeps of one contender."""
    for case in cases.values():
        case["value"] = float(f"{case['value']:.5g}")
    return {"type": task.kind, "version": version, "how": how, "cases": cases}


def decode_case(start: int) -> str:
    """The name of decoding with so many tokens in the cache."""
    return f"decode after {start}"


def prefill_case(length: int) -> str:
    """The name of reading so many tokens."""
    return f"prefill {length}"
