"""Which copy of itself a guest is."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

import numpy as np

from nocopy.interfaces.imports import CLONE_INFO


@dataclass(frozen=True)
class Clone:
    """The fields are those of `imports.CLONE_INFO`."""

    generation: int = 0
    index: int = 0
    random: int = field(default_factory=lambda: secrets.randbits(64))

    def pack(self) -> bytes:
        """The struct that `clone` writes."""
        return np.array((self.generation, self.index, self.random), CLONE_INFO).tobytes()

    def next(self, index: int = 0) -> Clone:
        """A clone of this one."""
        return Clone(self.generation + 1, index)
