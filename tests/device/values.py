"""Values that conformance tests put in: ordinary ones, exact ones, and those at the edges of each dtype."""

from __future__ import annotations

import numpy as np

from nocopy.memory.dtype import FLOATS

REAL = sorted(FLOATS)

SPECIAL = np.array(
    [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 3.0, -3.0, 1e-3, -1e-3, 0.1, 0.7, 10.0, -10.0, 20.0,
     -20.0, 88.0, -87.0, 100.0, -100.0, 255.5, 1e4, -1e4, 65504.0, 65520.0, 1e20, -1e20, 3e38, np.inf,
     -np.inf, np.nan, 6e-8, -6e-8, 6.2e-5, 1e-38, 1e-40, -1e-40],
    np.float32,
)  # fmt: skip
"""Rounding, overflow and underflow in each dtype; infinities, NaN, both zeros, subnormals."""


def normal(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def whole(seed: int, *shape: int, top: int = 4) -> np.ndarray:
    """Small integers: sums of their products are exact in f32."""
    return np.random.default_rng(seed).integers(-top, top + 1, shape).astype(np.float32)
