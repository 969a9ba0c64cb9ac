"""Weights to f32, in NumPy. What the bytes of a block mean is in `tape/blocks.py`."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from nocopy.errors import UsageError
from nocopy.models.ggml import DENSE, DTYPES, GGMLType, require_supported
from nocopy.tape import blocks

F32: TypeAlias = npt.NDArray[np.float32]
Blocks: TypeAlias = npt.NDArray[Any]  # a structured dtype, or fields of it


def dequantize(raw: npt.NDArray[np.uint8], kind: GGMLType, shape: Sequence[int]) -> F32:
    """Decode the bytes of a weight.

    Args:
        raw: u8, contiguous; the tensor's bytes, as `Weights.raw` gives them.
        kind: what they hold.
        shape: outermost axis first; the last axis is a multiple of the type's block.

    Returns:
        f32 [shape], newly allocated.

    Raises:
        UnsupportedModelError: the type is known but cannot be decoded here.
        UsageError: the bytes are not as many as the shape needs.
    """
    require_supported(kind, "a tensor to dequantise")
    elements = prod(shape)
    if raw.size != kind.nbytes(elements) or elements % kind.block_elements:
        raise UsageError(
            f"dequantising {kind.name} {tuple(shape)} was asked for; that is {elements} elements in"
            f" {kind.nbytes(elements)} bytes and {raw.size} bytes were given"
        )
    if kind in DENSE:
        return raw.view(DENSE[kind]).astype(np.float32).reshape(shape)
    dtype = DTYPES[kind]
    return blocks.decode(raw.view(blocks.LAYOUTS[dtype]), dtype).reshape(shape)
