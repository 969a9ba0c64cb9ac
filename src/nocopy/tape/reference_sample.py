"""The reference's meaning of sample and penalize: how a token is drawn, on the host and on every device.

Part of `tape/reference.py`, which says how to read it. What decides a draw is exact: one subtraction and one
multiplication in f32, then whole numbers. Sums of whole numbers do not depend on their order, so every player
draws the same token from the same scores, whatever its threads do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nocopy.tape.arrays import F32, f32, store
from nocopy.tape.ops import EXP2

U64 = npt.NDArray[np.uint64]
Ids = npt.NDArray[np.int64]

LOG2_E = float(np.float32(1.44269504))
"""The steepness of temperature 1."""
WHOLE = 2**40
"""The weight of the largest score."""
SMALLEST = np.float32(2.0**-126)
"""The least normal f32: what is below counts as 0, since a player may treat it so."""
FURTHEST = np.float32(63)
"""Halvings from the largest score at which the weight has long been 0."""
PHILOX_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
PHILOX_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
PHILOX_ROUNDS = 10
"""Philox4x64-10: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (SC 2011), section 4.3."""


def penalize(operands: list[Any], _p: Mapping[str, Any]) -> None:
    """Copy each row, then lower the scores of its recent tokens."""
    out, x, recent, options = operands
    for r in range(len(x)):
        store(out[r], penalized(f32(x[r]), recent[r].tolist(), options[r].tolist()))


def penalized(scores: F32, recent: Iterable[int], options: Sequence[float]) -> F32:
    """Scores f32 [n] in which each token that is among `recent` costs something.

    Args:
        scores: not changed.
        recent: tokens; those that are not 0 to n-1 do not count.
        options: `ops.PENALTIES`, numbers of f32. Scores above 0 are multiplied by `shrink`, others by
            `grow`; then `frequency` times the number of times is subtracted, then `presence`.
    """
    scores = scores.copy()
    shrink, grow, frequency, presence = options
    counts = {token: n for token, n in Counter(recent).items() if 0 <= token < len(scores)}
    ids = np.fromiter(counts.keys(), np.int64, len(counts))
    times = np.fromiter(counts.values(), np.float32, len(counts))
    s = scores[ids]
    s = np.where(s > 0, s * shrink, s * grow)
    scores[ids] = s - times * frequency - presence
    return scores


def sample(operands: list[Any], p: Mapping[str, Any]) -> None:
    """Draw a token from each row."""
    out, x, options, state = operands
    for r in range(len(x)):
        steepness, top_p, min_p = options[r].tolist()
        top_k, *words = state[r].tolist()
        seed, draw = (low % 2**32 | high % 2**32 << 32 for low, high in (words[:2], words[2:]))
        out[r] = token(f32(x[r]), steepness, top_p, min_p, top_k, seed, (draw + p["ahead"]) % 2**64)


def token(
    scores: F32,
    steepness: float,
    top_p: float,
    min_p: float,
    top_k: int,
    seed: int,
    draw: int,
    narrow: Callable[[F32, Ids], Ids] | None = None,
) -> int:
    """The token that a draw gives; -1 if the largest score is not finite. The parts are numbers of f32.

    Args:
        scores: f32 [n]; NaN counts as -infinity.
        steepness: log2(e) / temperature; the likeliest is taken unless it is above 0.
        top_p: after top_k, as in `likely`.
        min_p: then, as in `likely`.
        top_k: keep the k first in the order of `first`; all if it is not above 0.
        seed: the key of the random number.
        draw: its counter.
        narrow: picks from indices in that order, between top_k and top_p; only the host has such a thing.
    """
    largest = scores.max()
    if np.isnan(largest):
        scores = np.where(np.isnan(scores), np.float32(-np.inf), scores)
        largest = scores.max()
    if not np.isfinite(largest):
        return -1
    if not steepness >= SMALLEST:
        return int(scores.argmax())
    ids = first(scores, top_k, in_order=top_p < 1 or narrow is not None)
    if narrow is not None:
        ids = narrow(scores, ids)
    return drawn(scores, likely(scores, ids, top_p, min_p), steepness, random_bits(seed, draw))


def first(scores: F32, top_k: int, *, in_order: bool) -> Ids:
    """The indices of the `top_k` largest scores, in falling order, ties by lowest index; of all for 0.

    Those of all need not be in order.
    """
    n = len(scores)
    if 0 < top_k < n:
        threshold = np.partition(scores, n - top_k)[n - top_k]
        ids = np.flatnonzero((scores >= threshold) & (scores > -np.inf))
    else:
        ids, top_k = np.flatnonzero(scores > -np.inf), n
        if not in_order:
            return ids
    return ids[np.argsort(-scores[ids], kind="stable")][:top_k]


def likely(scores: F32, ids: Ids, top_p: float, min_p: float) -> Ids:
    """Those of some indices that are likely enough at temperature 1.

    Args:
        scores: f32 [n].
        ids: with that of the largest score; in the order of `first` if `top_p` is below 1.
        top_p: keep those before which the weights sum to less than this part of all; the first in any case;
            all if it is not below 1.
        min_p: then keep those whose weight is at least this part of the largest; all if it is not above 0.
    """
    weight = weights(scores[ids], scores[ids].max(), LOG2_E)
    keep = np.ones(len(ids), np.bool_)
    if top_p < 1:
        before = weight.cumsum() - weight
        keep = before < int(weight.sum()) * _part(top_p) >> 32
        keep[0] = True
    if min_p > 0:
        keep &= weight >= (WHOLE * _part(min_p) >> 32)
    return ids[keep]


def drawn(scores: F32, ids: Ids, steepness: float, bits: int) -> int:
    """One of some indices, each as often as its weight: the first at which the sum passes bits / 2**64.

    The sum goes over rising indices.
    """
    ids = np.sort(ids)
    kept = scores[ids]
    total = weights(kept, kept.max(), steepness).cumsum()
    return int(ids[np.searchsorted(total, np.uint64(bits * int(total[-1]) >> 64), side="right")])


def weights(scores: F32, largest: np.float32, steepness: float) -> U64:
    """2**(40 - steepness * (largest - score)) for each score, rounded down to a whole number.

    The exponent is a number of 2**-24 ths: its whole part shifts, its fraction goes through `ops.EXP2`.
    """
    with np.errstate(all="ignore"):
        below = largest - scores
        halvings = np.where(below < SMALLEST, np.float32(0), below * steepness)
        halvings = np.where(halvings < FURTHEST, halvings, FURTHEST)
    q = (halvings * np.float32(2**24)).astype(np.uint64)
    fraction, weight = q & np.uint64(2**24 - 1), np.uint64(EXP2[-1])
    for term in EXP2[-2::-1]:
        weight = np.uint64(term) - (weight * fraction >> np.uint64(24))
    return weight << np.uint64(10) >> (q >> np.uint64(24))


def _part(p: float) -> int:
    """A part of one in 2**-32 ths, rounded down."""
    return int(min(p, 1) * 2**32) if p > 0 else 0


def random_bits(seed: int, draw: int) -> int:
    """64 random bits: the first word of Philox4x64-10 with key `seed` and counter `draw` + 1.

    They are those of `numpy.random.Philox(key=seed, counter=draw)`, which counts before it draws.
    """
    counter = [(draw + 1) >> (64 * i) & 2**64 - 1 for i in range(4)]
    key = [seed, 0]
    for _ in range(PHILOX_ROUNDS):
        a, b = PHILOX_MULTIPLIERS[0] * counter[0], PHILOX_MULTIPLIERS[1] * counter[2]
        counter = [b >> 64 ^ counter[1] ^ key[0], b % 2**64, a >> 64 ^ counter[3] ^ key[1], a % 2**64]
        key = [(k + weyl) % 2**64 for k, weyl in zip(key, PHILOX_WEYL, strict=True)]
    return counter[0]
