"""`session_generate`: the options that a guest wrote, and the loop that draws and appends tokens."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt

from nocopy.errors import UsageError
from nocopy.interfaces.model_imports import BIAS, GENERATION, GENERATION_VERSION, Finish, Generate
from nocopy.interfaces.sessions import GuestSession
from nocopy.memory.linear import LinearMemory
from nocopy.session.sampler import Sampler, Sampling


class Options:
    """A guest's `nocopy_generation`.

    Raises:
        UsageError: it does not lie in the memory, or holds what it may not.
    """

    def __init__(self, memory: LinearMemory, pointer: int, vocabulary: int) -> None:
        self._memory, self._pointer = memory, pointer
        raw: Any = np.frombuffer(memory.read(pointer, GENERATION.itemsize), GENERATION)[0]
        if raw["version"] != GENERATION_VERSION:
            raise UsageError(
                f"generation options of version {raw['version']} were given; this host knows"
                f" {GENERATION_VERSION}. Start from nocopy_generation_default()."
            )
        flags = int(raw["flags"])
        if flags & ~sum(Generate) or raw["reserved"]:
            raise UsageError(f"generation flags {flags:#x} were given; known are {sum(Generate):#x}")
        self.ignore_end = bool(flags & Generate.IGNORE_END)
        numbers = {f.name: raw[f.name].item() for f in fields(Sampling) if f.name in (GENERATION.names or ())}
        bias = self._biases(int(raw["biases"]), int(raw["bias_count"]), vocabulary)
        self.sampler = Sampler(Sampling(**numbers, logit_bias=bias))
        self.sampler.draws = int(raw["draws"])

    def _biases(self, pointer: int, count: int, vocabulary: int) -> dict[int, float]:
        if count > vocabulary:
            raise UsageError(f"{count} biases were given; the model has {vocabulary} tokens")
        found = np.frombuffer(self._memory.read(pointer, count * BIAS.itemsize), BIAS)
        return dict(zip(found["token"].tolist(), found["bias"].tolist(), strict=True))

    def finish(self, why: Finish) -> None:
        """Tell the guest why it stopped, and how far the random numbers have come."""
        numbers = {"draws": self.sampler.draws % 2**64, "finish": int(why)}
        for name, (kind, offset, *_) in (GENERATION.fields or {}).items():
            if name in numbers:
                self._memory.write(self._pointer + offset, np.array(numbers[name], kind).tobytes())


def generate(
    found: GuestSession,
    sampler: Sampler,
    out: npt.NDArray[np.int32],
    *,
    ends: Collection[int],
    check: Callable[[], object],
) -> tuple[int, Finish]:
    """Draw tokens, append each, and write it to `out`.

    Args:
        found: the session; its logits are those after its last token.
        sampler: knows the tokens that the session holds already.
        out: i32 [most tokens to draw].
        ends: tokens that end the text; they are neither written nor appended.
        check: called before each token; it raises when time is up.

    Returns:
        How many tokens were written, and why it stopped.
    """
    session, constraint = found.session, found.constraint
    for made in range(len(out)):
        if constraint is not None and constraint.finished:
            return made, Finish.CONSTRAINT
        if session.length == session.context:
            return made, Finish.CONTEXT
        check()
        token = sampler.sample(session.logits, constraint.allowed() if constraint else None)
        sampler.accept([token])
        if constraint is not None:
            constraint.accept(token)
        if token in ends:
            return made, Finish.END
        out[made] = token
        found.append([token])
    finished = constraint is not None and constraint.finished
    return len(out), Finish.CONSTRAINT if finished else Finish.LENGTH
