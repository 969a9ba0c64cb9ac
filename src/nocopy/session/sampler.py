"""Chooses the next token from logits.

The order is llama.cpp's: penalties, bias, constraint, top-k, typical, top-p, min-p, temperature, draw.
Temperature 0 is greedy. Random numbers come from Philox with the seed as key and the number of the draw as
counter, so the whole state of a sampler is its options, its seed, how many draws it made, and the tokens
that it penalises.
"""

from __future__ import annotations

import secrets
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nocopy.errors import UsageError

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
    def _penalises(self) -> bool:
        o = self.options
        return o.repeat_penalty != 1 or o.frequency_penalty != 0 or o.presence_penalty != 0

    def accept(self, tokens: Sequence[int]) -> None:
        """Count tokens, prompt or drawn, among the recent ones."""
        self.recent.extend(tokens)

    def sample(self, logits: F32, allowed: npt.NDArray[np.bool_] | None = None) -> int:
        """Return the next token.

        Args:
            logits: f32 [vocabulary]; not changed.
            allowed: bool [vocabulary], the tokens that a constraint admits; None admits all.

        Raises:
            UsageError: nothing is allowed, or no logit is a number.
        """
        o = self.options
        scores = self._adjusted(logits)
        if allowed is not None:
            scores: F32 = np.where(allowed, scores, np.float32(-np.inf))
        best: float = scores.max(initial=-np.inf)
        if not np.isfinite(best):
            raise UsageError(
                "no token can be drawn: the constraint admits none, or the logits are not numbers"
            )
        if o.temperature == 0:
            return int(scores.argmax())
        ids = self._top_k(scores)
        kept = scores[ids].astype(np.float64)
        for rule in (self._typical, self._top_p, self._min_p):
            keep = rule(_softmax(kept))
            ids, kept = ids[keep], kept[keep]
        cumulative: npt.NDArray[np.float64] = _softmax(kept / o.temperature).cumsum()
        at = int(np.searchsorted(cumulative, self._uniform() * float(cumulative[-1]), side="right"))
        return int(ids[min(at, len(ids) - 1)])

    def _adjusted(self, logits: F32) -> F32:
        """Penalties and bias; a copy only if there are any."""
        o = self.options
        penalised = self.recent and self._penalises
        if not penalised and not o.logit_bias:
            return logits
        scores = logits.copy()
        if penalised:
            counts = Counter(self.recent)
            ids = np.fromiter(counts.keys(), np.int64)
            times = np.fromiter(counts.values(), np.float32)
            s = scores[ids]
            s = np.where(s > 0, s / np.float32(o.repeat_penalty), s * np.float32(o.repeat_penalty))
            scores[ids] = s - times * np.float32(o.frequency_penalty) - np.float32(o.presence_penalty)
        for token, bias in o.logit_bias.items():
            if not 0 <= token < len(scores):
                raise UsageError(f"logit_bias names token {token}; tokens are 0 to {len(scores) - 1}")
            scores[token] += np.float32(bias)
        return scores

    def _top_k(self, scores: F32) -> npt.NDArray[np.int64]:
        """Ids of the k largest finite scores, in falling order; ties by lowest id."""
        k = self.options.top_k or len(scores)
        if k < len(scores):
            threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
            ids = np.flatnonzero((scores >= threshold) & (scores > -np.inf))
        else:
            ids = np.flatnonzero(scores > -np.inf)
        return ids[np.argsort(-scores[ids], kind="stable")][:k]

    def _typical(self, p: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
        """Locally typical sampling (Meister et al. 2023)."""
        if self.options.typical_p >= 1:
            return np.arange(len(p))
        surprise = -np.log(p)
        order = np.argsort(np.abs(surprise - (p * surprise).sum()), kind="stable")
        count = int(np.searchsorted(p[order].cumsum(), self.options.typical_p)) + 1
        return np.sort(order[:count])

    def _top_p(self, p: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
        if self.options.top_p >= 1:
            return np.arange(len(p))
        return np.arange(min(int(np.searchsorted(p.cumsum(), self.options.top_p)) + 1, len(p)))

    def _min_p(self, p: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
        return np.flatnonzero(p >= self.options.min_p * p.max())

    def _uniform(self) -> float:
        """One number in [0, 1): the draw's own."""
        bits = np.random.Philox(key=self.seed, counter=self.draws).random_raw()
        self.draws += 1
        return (int(bits) >> 11) * 2.0**-53


def _softmax(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    e = np.exp(scores - scores.max())
    return e / e.sum()


def log_probabilities(logits: F32) -> F32:
    """Natural logarithms of the model's own distribution, before any option changes it."""
    x = logits.astype(np.float64)
    x -= x.max()
    return (x - np.log(np.exp(x).sum())).astype(np.float32)
