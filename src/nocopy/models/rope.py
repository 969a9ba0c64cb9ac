"""Rotary frequencies, in radians a token, with the scalings that models are trained with.

plain      f_i = base^(-2i/n)                                           Su et al., RoFormer
linear     f_i / factor
llama3     long wavelengths divided by factor, short ones kept, a ramp between
yarn       interpolates low frequencies, keeps high ones; scale 0.1 ln(factor) + 1     Peng et al., YaRN
factors    f_i / factor_i, with factors that the model file lists (llama3 in GGUF, longrope)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


def plain(base: float, n: int) -> F64:
    """Frequencies of the n/2 pairs of a head of n rotated elements."""
    return base ** (-np.arange(0, n, 2, dtype=np.float64) / n)


def llama3(f: F64, factor: float, low: float, high: float, original: int) -> F64:
    """Scale as Llama 3.1 does.

    `low` and `high` are how many times a wave fits into `original` tokens, at the ends of the ramp.
    """
    turns = original * f / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 - smooth) * f / factor + smooth * f


def yarn(f: F64, base: float, factor: float, original: int, fast: float = 32, slow: float = 1) -> F64:
    """Interpolate as YaRN does; `fast` and `slow` are turns in `original` tokens at the ends of the ramp."""
    n = 2 * len(f)

    def pair(turns: float) -> float:
        return n * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    first, last = max(math.floor(pair(fast)), 0), min(math.ceil(pair(slow)), n - 1)
    ramp = np.clip((np.arange(len(f)) - first) / max(last - first, 0.001), 0, 1)
    return f / factor * ramp + f * (1 - ramp)


def yarn_scale(factor: float) -> float:
    """What YaRN multiplies rotated elements by."""
    return 0.1 * math.log(factor) + 1 if factor > 1 else 1.0


def longrope_scale(factor: float, original: int) -> float:
    """What longrope multiplies rotated elements by; `factor` is context / original context."""
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def divided(f: F64, factors: Sequence[float] | npt.NDArray[np.floating[Any]]) -> F64:
    """Frequencies divided one by one."""
    return f / np.asarray(factors, np.float64)
