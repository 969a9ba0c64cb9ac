"""Drawing a token from 128,256 logits on a device, beside the host that does the same in NumPy.

A row is the ops that choose a token (argmax; or sample, and penalize where there are penalties), once for
each of the eight tokens that a session has chosen in one play; a play of nothing is subtracted. Options lie
in shared pages, logits in the device's own memory, normal with a deviation of 2.5, as a trained model's have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from nocopy.bench.llama import LLAMA_1B, SEED
from nocopy.bench.result import Row, row
from nocopy.bench.runner import Progress, silent
from nocopy.bench.timing import interleaved
from nocopy.device.protocol import Device, Program
from nocopy.errors import DeviceError
from nocopy.memory.dtype import DType
from nocopy.memory.linear import LinearMemory
from nocopy.session.sampler import Sampler, Sampling
from nocopy.tape import Space, TapeBuilder, Tensor

VOCABULARY = LLAMA_1B.vocabulary

CASES = {
    "likeliest": Sampling(temperature=0),
    "default options": Sampling(seed=SEED),
    "top_p 0.9 of all": Sampling(seed=SEED, top_k=0, top_p=0.9, min_p=0),
    "no filter": Sampling(seed=SEED, top_k=0, top_p=1, min_p=0),
    "penalties of 64 tokens": Sampling(seed=SEED, repeat_penalty=1.1),
}
DEVIATION = 2.5
SECONDS = 1.0
DRAWS = 8
"""Of a play."""
CHOICE, PENALTIES, STATE, TOKEN, RECENT, BLOCK = 0, 64, 128, 192, 256, 4096
"""Bytes of the shared pages at which things lie; the last is where logits come from."""


def rows(device: Device, *, progress: Progress = silent) -> list[Row]:
    """Measure each of `CASES`, in microseconds a token.

    Raises:
        DeviceError: the device drew another token than the host.
    """
    with Desk(device) as desk:
        found: list[Row] = []
        for i, (name, sampling) in enumerate(CASES.items()):
            progress(name, i / len(CASES))
            sampler = Sampler(sampling)
            sampler.accept(range(sampling.repeat_last_n))
            found.append(desk.measured(name, sampler))
        return found


class Desk:
    """Logits on a device, and in shared pages what a draw is made from."""

    def __init__(self, device: Device) -> None:
        self.device, size = device, 4 * VOCABULARY
        self._memory = LinearMemory(-(-(BLOCK + size) // 65536) * 65536)
        self._pages = device.share(self._memory.address, self._memory.size)
        self._scratch = device.allocate(2 * size + 64)
        self._logits = self._memory.view(VOCABULARY, "f32", BLOCK).numpy()
        self._logits[...] = np.random.default_rng(SEED).normal(0, DEVIATION, VOCABULARY)
        tape = TapeBuilder()
        tape.copy(_scratch(0), _shared(BLOCK, 1, VOCABULARY))
        program = self._compiled(tape)
        device.play(program)
        program.close()

    def measured(self, name: str, sampler: Sampler) -> Row:
        """The time of a draw by this sampler, on the device and on the host."""
        recent = sampler.position().recent
        self._put(CHOICE, sampler.choice, "f32")
        self._put(PENALTIES, sampler.penalties, "f32")
        self._put(STATE, sampler.state(), "i32")
        self._put(RECENT, recent, "i32")
        tape = TapeBuilder()
        for i in range(DRAWS):
            scores = _scratch(0)
            if recent:
                scores = _scratch(4 * VOCABULARY)
                window = _shared(RECENT, 1, len(recent), dtype=DType.I32)
                tape.penalize(scores, _scratch(0), window, _shared(PENALTIES, 1, 4))
            out = _shared(TOKEN + 4 * i, 1, dtype=DType.I32)
            if sampler.greedy:
                tape.argmax(out, scores)
            else:
                state = _shared(STATE, 1, 5, dtype=DType.I32)
                tape.sample(out, scores, _shared(CHOICE, 1, 3), state, ahead=i)
        program, nothing = self._compiled(tape), self._compiled(_nothing())
        self.device.play(program)
        found = self._memory.view(DRAWS, "i32", TOKEN).numpy().tolist()
        wanted = [sampler.sample(self._logits) for _ in range(DRAWS)]
        if found != wanted:
            raise DeviceError(
                f"{name}: draws were asked for; {self.device.info.name} gave {found}, the host {wanted}"
            )
        sides = {
            "device": lambda: self.device.play(program),
            "nothing": lambda: self.device.play(nothing),
            "host": lambda: sampler.sample(self._logits),
        }
        taken = interleaved(sides, seconds=SECONDS)
        program.close()
        nothing.close()
        each = (taken["device"] - taken["nothing"]) / DRAWS
        return row(name, 1e6 * each, "us", "NumPy on the host", 1e6 * taken["host"])

    def _put(self, at: int, values: Sequence[float] | np.ndarray[Any, Any], dtype: str) -> None:
        if len(values):
            self._memory.view(len(values), dtype, at).numpy()[...] = values

    def _compiled(self, tape: TapeBuilder) -> Program:
        spaces = {Space.GUEST: self._pages, Space.SCRATCH: self._scratch}
        return self.device.compile(tape.build({space: p.nbytes for space, p in spaces.items()}), spaces)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        del self._logits  # arrays keep the memory mapped
        self._scratch.close()
        self._pages.close()
        self._memory.close()


def _nothing() -> TapeBuilder:
    """A tape that writes one word which nobody reads."""
    tape = TapeBuilder()
    tape.fill(Tensor(Space.SCRATCH, 8 * VOCABULARY, (1,), DType.F32), 0)
    return tape


def _shared(at: int, *shape: int, dtype: DType = DType.F32) -> Tensor:
    return Tensor(Space.GUEST, at, shape, dtype)


def _scratch(at: int) -> Tensor:
    return Tensor(Space.SCRATCH, at, (1, VOCABULARY), DType.F32)
