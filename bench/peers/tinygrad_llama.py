"""tinygrad's own language model program, its decoding kernels searched for with BEAM.

The search takes minutes the first time; tinygrad keeps what it found in its cache. Weights are float16, as
its loader has it. Prompts are read token by token: kernels for prompts would need a search of their own, and
without one their speed says nothing.
"""

# tinygrad is no part of the development environment.
# pyright: standard, reportMissingImports=false

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from .contender import MissingError, Task, measured

TYPES = ("bf16",)
BEAM = 2
DEVICES = {"cuda": "CUDA", "cpu": "CPU"}


class Runner:
    """A `Contender`; `tinygrad.llm.model` is imported as `llm` once the environment names the device."""

    def __init__(self, task: Task) -> None:
        os.environ.setdefault("DEV", DEVICES[task.device])
        try:
            import tinygrad
            from tinygrad.llm import model as llm
        except ImportError as e:
            raise MissingError(f"tinygrad cannot be imported ({e}); run `pip install tinygrad`") from e
        from importlib.metadata import version

        self.version = version("tinygrad")
        self.how = f"tinygrad.llm, BEAM={BEAM}, float16 weights"
        self._tinygrad = tinygrad
        load = llm.gguf_load
        # The measured files have no vocabulary; the loader wants to count one.
        llm.gguf_load = lambda path: _counted(load(path), task.vocabulary)
        self.model, _ = llm.Transformer.from_gguf(task.path, task.context, realize=True)
        self.start = tinygrad.UOp.variable("start_pos", 0, task.context - 1)
        self.cold = tinygrad.Tensor([0.0]).realize()
        self.token: Any = None
        self.length = 0

    def read(self, prompt: Sequence[int]) -> None:
        """Forget everything, read a prompt, and wait until that is done."""
        self.length = 0
        for token in prompt:
            self.token = self._step(self._tinygrad.Tensor([[token]], dtype="int32").realize())
        self.token.item()

    def generate(self, count: int) -> list[int]:
        """The next greedy tokens, each fed again; the last one too."""
        drawn: list[int] = []
        for _ in range(count):
            drawn.append(int(self.token.item()))
            self.token = self._step(self.token)
        self.token.item()
        return drawn

    def _step(self, token: Any) -> Any:
        with self._tinygrad.helpers.Context(BEAM=BEAM):
            made = self.model(token, self.start.bind(self.length), self.cold).realize()
        self.length += 1
        return made


def _counted(loaded: tuple[dict[str, Any], dict[str, Any]], vocabulary: int) -> tuple[dict[str, Any], ...]:
    metadata, tensors = loaded
    return {"tokenizer.ggml.tokens": range(vocabulary)} | metadata, tensors


def measure(task: Task) -> dict[str, Any]:
    """Time it."""
    return measured(Runner(task), task, prefill=False)
