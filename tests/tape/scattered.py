"""What scatter should write: whole rows of x, converted; for Q8_0 the very bytes of the format."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nocopy.memory.dtype import DType
from nocopy.tape.blocks import LAYOUTS, encode

Array = npt.NDArray[Any]
TINY = np.float32(2.0**-126)


def disagreement(held: dict[str, Array], got: dict[str, Array]) -> str:
    """What is wrong with a scatter, or "".

    Args:
        held: its operands before, by name.
        got: the same afterwards.
    """
    before, after = held["out"], got["out"]
    for row in range(len(after)):
        sources = np.flatnonzero(held["indices"] == row)
        if not len(sources):
            if after[row].tobytes() != before[row].tobytes():
                return f"scatter: row {row} changed; no index names it"
        elif not any(_is_row(after[row], held["x"][source]) for source in sources):
            return f"scatter: row {row} is {after[row]!r}; rows {sources[:8]} of x go there"
    return ""


def _is_row(found: Array, x: Array) -> bool:
    """True if x, converted, is what was found. Subnormals may have become 0; payloads of NaN are free."""
    x = x.astype(np.float32)
    if found.dtype == LAYOUTS[DType.Q8_0]:
        return _are_blocks_of(found, x)
    return any(_same(found, _narrowed(v, found.dtype)) for v in (x, _flushed(x)))


def _narrowed(x: Array, dtype: np.dtype[Any]) -> Array:
    with np.errstate(all="ignore"):
        return x.astype(dtype)


def _same(a: Array, b: Array) -> bool:
    raw = np.dtype(f"u{a.dtype.itemsize}")
    same = np.ascontiguousarray(a).view(raw) == np.ascontiguousarray(b).view(raw)
    return bool((same | (np.isnan(a) & np.isnan(b))).all())


def _flushed(x: Array) -> Array:
    return np.where(np.abs(x) < TINY, np.copysign(np.float32(0), x), x)


def _are_blocks_of(found: Array, x: Array) -> bool:
    """The bytes that `blocks.encode` gives, which are the format's.

    A block with an infinity or a NaN is not specified, nor are the quants of one whose scale is subnormal:
    it decodes to 0 whatever they are.
    """
    rows = x.reshape(-1, DType.Q8_0.block)
    largest = np.abs(rows).max(axis=1) if len(rows) else np.zeros(0, np.float32)
    free = ~np.isfinite(largest)
    with np.errstate(all="ignore"):
        tiny = (largest / np.float32(127) < TINY) & (largest > 0)
        wanted = encode(np.where((free | tiny)[:, None], np.float32(0), rows).reshape(-1), DType.Q8_0)
    scales = found["d"].view(np.uint16) == wanted["d"].view(np.uint16)
    quants = (found["qs"] == wanted["qs"]).all(-1) | tiny
    return bool((free | (scales & quants)).all())
