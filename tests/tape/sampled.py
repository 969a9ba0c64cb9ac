"""What sample should draw, one element after another in Python's numbers; what penalize may write."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from nocopy.tape.ops import EXP2

Array = npt.NDArray[Any]
F32 = np.float32
TINY = 2.0**-126


def expected(x: Array, options: Array, state: Array, ahead: int) -> npt.NDArray[np.int32]:
    """The index of each row.

    Args:
        x: scores [r, n].
        options: steepness, top_p, min_p of each row.
        state: top_k and the words of seed and draw of each row.
        ahead: added to the number of the draw.
    """
    rows = zip(x.astype(F32), options, state.astype(np.int64), strict=True)
    return np.array([_row(s, *map(float, o), t.tolist(), ahead) for s, o, t in rows], np.int32)


def _row(scores: Array, steepness: float, top_p: float, min_p: float, state: list[int], ahead: int) -> int:
    scores = np.where(np.isnan(scores), F32(-np.inf), scores)
    order = np.lexsort((np.arange(len(scores)), -scores)).tolist()
    top = scores[order[0]]
    if abs(top) == np.inf:
        return -1
    if not steepness >= TINY:
        return order[0]
    top_k = state[0]
    if 0 < top_k < len(order):
        order = order[:top_k]
    likely = _weights(top, scores, F32(1.44269504))
    kept: list[int] = []
    before, total = 0, sum(likely[i] for i in order)
    for i in order:
        if kept and top_p < 1 and before >= total * _part(top_p) // 2**32:
            break
        kept.append(i)
        before += likely[i]
    if min_p > 0:
        kept = [i for i in kept if likely[i] >= 2**40 * _part(min(min_p, 1.0)) // 2**32]
    seed, draw = (low % 2**32 + high % 2**32 * 2**32 for low, high in (state[1:3], state[3:5]))
    bits = int(np.random.Philox(key=seed, counter=(draw + ahead) % 2**64).random_raw())
    weights = _weights(top, scores, F32(steepness))
    target = bits * sum(weights[i] for i in kept) // 2**64
    for i in sorted(kept):
        if target < weights[i]:
            return i
        target -= weights[i]
    raise AssertionError("the weights do not reach their sum")


def _part(p: float) -> int:
    return int(Fraction(p) * 2**32) if 0 < p < np.inf else 0


def _weights(top: Any, scores: Array, steepness: Any) -> list[int]:
    below = top - scores
    halvings = np.where(below < TINY, F32(0), below * steepness).astype(np.float64)
    halvings = np.where(halvings < 63, halvings, 63)
    whole, fraction = np.divmod((halvings * 2**24).astype(np.int64), 2**24)
    weight = np.zeros(len(scores), np.int64)
    for term in reversed(EXP2):
        weight = term - weight * fraction // 2**24
    return (weight * 1024 // 2**whole).tolist()


def penalized(x: dict[str, Any]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The exact scores, float64 [r, n], and the sums of the magnitudes that make them."""
    y = x["x"].astype(np.float64).copy()
    size = np.zeros(y.shape)
    for r, (recent, options) in enumerate(zip(x["recent"].astype(np.int64), x["options"], strict=True)):
        shrink, grow, frequency, presence = options
        for token in {int(t) for t in recent if 0 <= t < y.shape[1]}:
            s, times = y[r, token], float((recent == token).sum())
            scaled, often = (s * shrink if s > 0 else s * grow), times * frequency
            y[r, token] = scaled - often - presence
            size[r, token] = abs(scaled) + abs(often) + abs(presence) + TINY
    return y, size
