"""Chooses the next token from logits.

The order is llama.cpp's: penalties, bias, constraint, top-k, typical, top-p, min-p, temperature, draw.
Temperature 0 is greedy. What these mean says `tape/reference_sample.py`: the ops penalize and sample draw the
same tokens on a device, where bias, constraints and typical_p are not needed. Random numbers come from Philox
with the seed as key and the number of the draw as counter, so the whole state of a sampler is its options,
its seed, how many draws it made, and the tokens that it penalises.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import e, isnan, log2

import numpy as np
import numpy.typing as npt

from nocopy.errors import UsageError
from nocopy.tape.ops import MAX_RECENT
from nocopy.tape.reference_sample import penalized, token

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens. The names are those that llama.cpp and OpenAI's API use.

    Args:
        temperature: 0 is greedy; 1 draws from the model's own distribution.
        top_k: keep the k likeliest; 0 keeps all.
        top_p: keep the likeliest until their probabilities sum to p.
        min_p: keep those at least this fraction as likely as the likeliest.
        typical_p: keep those whose surprise is nearest the expected one, until they sum to p.
        repeat_penalty: divide (or multiply, if negative) logits of recent tokens by this.
        frequency_penalty: subtract this for each time that a token is among the recent ones.
        presence_penalty: subtract this if a token is among the recent ones.
        repeat_last_n: how many tokens are recent; 0 turns penalties off, -1 means all.
        logit_bias: add to the logits of single tokens.
        seed: 64 bits; None draws one.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_last_n: int = 64
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    seed: int | None = None

    def __post_init__(self) -> None:
        limits = {
            "temperature": (self.temperature, 0, 100),
            "top_k": (self.top_k, 0, 2**31),
            "top_p": (self.top_p, 0, 1),
            "min_p": (self.min_p, 0, 1),
            "typical_p": (self.typical_p, 0, 1),
            "repeat_penalty": (self.repeat_penalty, 1e-3, 1e3),
            "frequency_penalty": (self.frequency_penalty, -100, 100),
            "presence_penalty": (self.presence_penalty, -100, 100),
            "repeat_last_n": (self.repeat_last_n, -1, 2**31),
            "seed": (0 if self.seed is None else self.seed, 0, 2**64 - 1),
        }
        for name, (value, low, high) in limits.items():
            if not low <= value <= high:
                raise UsageError(f"{name} = {value} was asked for; it must be between {low} and {high}")
        for biased, bias in self.logit_bias.items():
            if isnan(bias):
                raise UsageError(f"logit_bias of token {biased} was given as NaN, which is not a number")


@dataclass(frozen=True)
class Position:
    """Where a sampler stands: what it draws next from given logits depends on nothing else.

    `recent` are the last tokens that its penalties count, the oldest first, -1 where there is none yet.
    """

    options: Sampling
    seed: int
    draws: int
    recent: tuple[int, ...]


class Sampler:
    """Draws tokens under `options`. `accept` tells it what the sequence became."""

    def __init__(self, options: Sampling | None = None) -> None:
        self.options = options or Sampling()
        self.seed = secrets.randbits(64) if self.options.seed is None else self.options.seed
        self.draws = 0
        n = self.options.repeat_last_n
        self.recent: deque[int] = deque(maxlen=None if n < 0 else n)

    @property
    def greedy(self) -> bool:
        """True if it always takes the likeliest token, whatever came before."""
        o = self.options
        return o.temperature == 0 and not (self._penalises or o.logit_bias)

    @property
    def window(self) -> int | None:
        """How many recent tokens the ops penalize and sample need to draw the same; None if they cannot."""
        o = self.options
        if o.logit_bias or o.typical_p < 1:
            return None
        if not self._penalises:
            return 0
        return o.repeat_last_n if 0 <= o.repeat_last_n <= MAX_RECENT else None

    def position(self, then: Sequence[int] = ()) -> Position:
        """Where it stands, or will once it has accepted tokens."""
        window = self.window or 0
        recent = [-1] * window + [*self.recent, *then]
        return Position(self.options, self.seed, self.draws, tuple(recent[len(recent) - window :]))

    @cached_property
    def choice(self) -> tuple[float, float, float]:
        """`options` of the op sample: numbers of f32."""
        o = self.options
        with np.errstate(over="ignore"):
            steepness = np.float32(log2(e) / o.temperature) if o.temperature else np.float32(0)
        return float(steepness), float(np.float32(o.top_p)), float(np.float32(o.min_p))

    @cached_property
    def penalties(self) -> list[float]:
        """`options` of the op penalize: numbers of f32."""
        o = self.options
        exact = [1 / o.repeat_penalty, o.repeat_penalty, o.frequency_penalty, o.presence_penalty]
        return np.array(exact, np.float32).tolist()

    def state(self, later: int = 0) -> npt.NDArray[np.int32]:
        """i32 [5]: `state` of the op sample, so many draws later."""
        draws = (self.draws + later) % 2**64
        words = [self.seed % 2**32, self.seed >> 32, draws % 2**32, draws >> 32]
        return np.array([self._top_k, *words], np.uint32).view(np.int32)

    @property
    def _top_k(self) -> int:
        return min(self.options.top_k, 2**31 - 1)

    @property
    def _penalises(self) -> bool:
        o = self.options
        return o.repeat_penalty != 1 or o.frequency_penalty != 0 or o.presence_penalty != 0

    def accept(self, tokens: Sequence[int]) -> None:
        """Count tokens, prompt or drawn, among the recent ones."""
        self.recent.extend(tokens)

    def drew(self) -> None:
        """Count a draw that a device has made for it; none is made at temperature 0."""
        if self.options.temperature != 0:
            self.draws = (self.draws + 1) % 2**64

    def sample(self, logits: F32, allowed: npt.NDArray[np.bool_] | None = None) -> int:
        """Return the next token.

        Args:
            logits: f32 [vocabulary]; not changed.
            allowed: bool [vocabulary], the tokens that a constraint admits; None admits all.

        Raises:
            UsageError: nothing is allowed, or no logit is a number.
        """
        scores = self._adjusted(logits)
        if allowed is not None:
            scores: F32 = np.where(allowed, scores, np.float32(-np.inf))
        narrow = self._typical if self.options.typical_p < 1 else None
        found = token(scores, *self.choice, self._top_k, self.seed, self.draws, narrow)
        if found < 0:
            raise no_token()
        self.drew()
        return found

    def _adjusted(self, logits: F32) -> F32:
        """Penalties and bias; a copy only if there are any."""
        scores = logits
        if self.recent and self._penalises:
            scores = penalized(logits, self.recent, self.penalties)
        elif self.options.logit_bias:
            scores = logits.copy()
        for biased, bias in self.options.logit_bias.items():
            if not 0 <= biased < len(scores):
                raise UsageError(f"logit_bias names token {biased}; tokens are 0 to {len(scores) - 1}")
            scores[biased] += np.float32(bias)
        return scores

    def _typical(self, scores: F32, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Locally typical sampling (Meister et al. 2023)."""
        p = _softmax(scores[ids].astype(np.float64))
        surprise = -np.log(p)
        order = np.argsort(np.abs(surprise - (p * surprise).sum()), kind="stable")
        count = int(np.searchsorted(p[order].cumsum(), self.options.typical_p)) + 1
        return ids[np.sort(order[:count])]


def no_token() -> UsageError:
    """The error of logits from which nothing can be drawn."""
    return UsageError("no token can be drawn: the constraint admits none, or the logits are not numbers")


def _softmax(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def log_probabilities(logits: F32) -> F32:
    """Natural logarithms of the model's own distribution, before any option changes it."""
    x = logits.astype(np.float64)
    x -= x.max()
    return (x - np.log(np.exp(x).sum())).astype(np.float32)
