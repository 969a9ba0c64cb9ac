"""The numbers that shape a model, read from GGUF metadata or from a config.json."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rope:
    """Rotary positions.

    `frequencies` are radians a token for each rotated pair, scaling already applied. `interleaved` pairs are
    (2i, 2i+1), others (i, i+f). `scale` multiplies what was rotated (YaRN's attention factor).
    """

    frequencies: tuple[float, ...]
    interleaved: bool
    scale: float = 1.0


@dataclass(frozen=True)
class Config:
    """Shape of a decoder or encoder.

    `window(layer)` is the number of tokens that a layer looks back, 0 for all. Sizes are elements.
    """

    architecture: str
    layers: int
    width: int
    heads: int
    groups: int
    head: int
    hidden: int
    vocabulary: int
    context: int
    eps: float
    attention_scale: float
    rope: Rope | None
    local_rope: Rope | None = None
    windows: tuple[int, ...] = ()
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    embedding_scale: float = 1.0
    causal: bool = True
    pooling: str = ""

    def window(self, layer: int) -> int:
        """How many tokens a layer looks back; 0 means all."""
        return self.windows[layer] if self.windows else 0

    def rope_of(self, layer: int) -> Rope | None:
        """The rotation of a layer: local layers may have their own."""
        return self.local_rope if self.local_rope is not None and self.window(layer) else self.rope

    @property
    def kv_width(self) -> int:
        """Elements of one token's keys (or values) in one layer."""
        return self.groups * self.head
