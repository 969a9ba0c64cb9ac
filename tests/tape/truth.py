"""What every op should give, in float64, by formulas that share nothing with the reference.

`expected` returns for each output the lowest and the highest value that a player may write: the exact value
minus and plus the tolerance (see `tolerance.py`), each rounded to the output's dtype. Rounding is monotone,
so this holds for every dtype without a second tolerance.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nocopy.memory.dtype import DType
from nocopy.tape.blocks import LAYOUTS, decode
from nocopy.tape.ops import BY_CODE, Op
from nocopy.tape.record import Space
from tests.tape import sampled, scattered
from tests.tape.tolerance import rope_pairs, rows_that_see, tolerance

F64 = npt.NDArray[np.float64]
Array = npt.NDArray[Any]


class Bounds(NamedTuple):
    """What one output may hold: values in [low, high]; NaN where both are; anything where `free`."""

    low: Array
    high: Array
    free: npt.NDArray[np.bool_]


def places(record: Any, slot: int) -> npt.NDArray[np.int64]:
    """The byte at which each element of an operand begins in its space, or each block."""
    op, o = BY_CODE[int(record["opcode"])], record["operands"][slot]
    dims = dict(zip(op.dims, (int(d) for d in record["dims"]), strict=False))
    spec, dtype = op.operands[slot], DType(int(o["dtype"]))
    units = [dtype.block if a == spec.blocks else 1 for a in spec.axes]
    shape = [dims[a] // unit for a, unit in zip(spec.axes, units, strict=True)]
    index = np.zeros(shape, np.int64)
    if 0 in shape:
        return index
    for axis, (size, stride, unit) in enumerate(zip(shape, o["strides"], units, strict=False)):
        steps = [1] * len(shape)
        steps[axis] = size
        index += (np.arange(size, dtype=np.int64) * (int(stride) * unit)).reshape(steps)
    return int(o["offset"]) + index // dtype.block * dtype.itemsize


def operands(record: Any, spaces: Mapping[Space, Array]) -> dict[str, Array]:
    """The operands that are there, by name, as copies."""
    found: dict[str, Array] = {}
    for slot, spec in enumerate(BY_CODE[int(record["opcode"])].operands):
        o = record["operands"][slot]
        if not o["dtype"]:
            continue
        dtype, at = DType(int(o["dtype"])), places(record, slot)
        flat = spaces[Space(int(o["space"]))]
        if dtype in LAYOUTS:
            units = _at(flat, at, LAYOUTS[dtype])
            # blocks.py is checked against the format's own package.
            found[spec.name] = units if spec.out else _decoded(units, dtype, spec.axes.index(spec.blocks))
            continue
        flat = flat[: len(flat) // dtype.itemsize * dtype.itemsize].view(dtype.numpy)
        found[spec.name] = flat[at // dtype.itemsize] if at.size else np.zeros(at.shape, dtype.numpy)
    return found


def _at(flat: Array, places: npt.NDArray[np.int64], layout: np.dtype[Any]) -> Array:
    bytes_of_each = places[..., None] + np.arange(layout.itemsize)
    return flat[bytes_of_each].view(layout)[..., 0] if places.size else np.zeros(places.shape, layout)


def _decoded(units: Array, dtype: DType, along: int) -> Array:
    with np.errstate(all="ignore"):
        return np.moveaxis(decode(np.moveaxis(units, along, -1), dtype), -1, along)


def params(record: Any) -> dict[str, Any]:
    """The parameters by name, and the function's name as `function`."""
    op = BY_CODE[int(record["opcode"])]
    values: dict[str, Any] = {"function": op.functions[int(record["function"])] if op.functions else ""}
    for spec, word in zip(op.params, record["params"], strict=False):
        bits = struct.pack("<I", int(word))
        values[spec.name] = int(word) if spec.kind == "u32" else struct.unpack("<f", bits)[0]
    return values


def expected(record: Any, spaces: Mapping[Space, Array], *, flush: bool = False) -> dict[str, Bounds]:
    """The bounds of each output, for the bytes that the spaces have before the record is played.

    `flush` gives those of a player that takes f32 subnormals for zero.
    """
    op = BY_CODE[int(record["opcode"])]
    held, p = operands(record, spaces), params(record)
    p["blocks"] = op.name == "matmul" and int(record["operands"][2]["dtype"]) in LAYOUTS
    out_dtypes = {spec.name: held[spec.name].dtype for spec in op.outputs}
    x = {name: _wide(array, flush) for name, array in held.items() if name not in out_dtypes}
    shapes = {name: held[name].shape for name in out_dtypes}
    with np.errstate(all="ignore"):
        values = _values(op, x, p, shapes, held)
        bounds: dict[str, Bounds] = {}
        for name, y in values.items():
            slack = np.broadcast_to(tolerance(op.name, x, y, p, AMPLITUDE.get(op.name)), y.shape)
            slack = np.where(np.isfinite(y) | np.isposinf(slack), slack, 0)
            free = np.isposinf(slack)
            safe = np.where(free, 0, slack)
            low, high = rounded(y - safe, out_dtypes[name]), rounded(y + safe, out_dtypes[name])
            bounds[name] = Bounds(low, high, free)
    return bounds


@np.errstate(all="ignore")
def disagreement(record: Any, before: Mapping[Space, Array], after: Mapping[Space, Array]) -> str:
    """What a player got wrong in one record, or "".

    Args:
        record: what was played.
        before: the bytes of each space before.
        after: the bytes of each space after.
    """
    op = BY_CODE[int(record["opcode"])]
    if not any(places(record, slot).size for slot in range(len(op.outputs))):
        return ""
    held, got = operands(record, before), operands(record, after)
    if op.name == "scatter":
        return scattered.disagreement(held, got)
    exact = expected(record, before)
    moved = op.name in ("copy", "gather")
    flushed = exact if moved else expected(record, before, flush=True)
    for spec in op.outputs:
        y = got[spec.name]
        right = _within(y, exact[spec.name]) | _within(y, flushed[spec.name])
        if moved:
            quantised = int(record["operands"][1]["dtype"]) in LAYOUTS
            right &= _same_bits(op, y, held, exact["out"], quantised)
        if not right.all():
            at = tuple(int(i) for i in np.argwhere(~right)[0])
            low, high, _ = exact[spec.name]
            inputs = {name: (v.dtype.name, v.shape) for name, v in held.items()}
            return (
                f"{op.name} {params(record)} on {inputs}: {spec.name}{list(at)} is {y[at]!r};"
                f" {low[at]!r} to {high[at]!r} is right; {(~right).sum()} of {y.size} elements are wrong"
            )
    return ""


def _within(y: Array, bounds: Bounds) -> npt.NDArray[np.bool_]:
    low, high, free = bounds
    both_nan = np.isnan(low.astype(np.float64)) & np.isnan(y.astype(np.float64))
    return ((low <= y) & (y <= high)) | both_nan | free


def _same_bits(
    op: Op, y: Array, held: dict[str, Array], exact: Bounds, quantised: bool
) -> npt.NDArray[np.bool_]:
    """A move keeps every bit if the dtype stays the same, and the sign of zero in any case."""
    if op.name == "gather":
        table, indices = held["table"], held["indices"]
        source = table[np.clip(indices, 0, len(table) - 1)]
        if quantised:
            return np.ones(y.shape, np.bool_)  # decoding may give either zero
    else:
        source = held["x"]
    if source.dtype == y.dtype:
        raw = np.dtype(f"u{y.dtype.itemsize}")
        return np.asarray(y.view(raw) == np.broadcast_to(source, y.shape).copy().view(raw))
    if y.dtype.kind in "iu":
        return np.ones(y.shape, np.bool_)
    return (np.signbit(y) == np.signbit(exact.low)) | np.isnan(exact.low.astype(np.float64))


def _values(
    op: Op, x: dict[str, F64], p: dict[str, Any], shapes: dict[str, tuple[int, ...]], held: dict[str, Array]
) -> dict[str, Array]:
    if op.name == "topk":
        values, indices = largest(x["x"], shapes["values"][-1])
        return {"values": values, "indices": indices}
    if op.name == "gather":
        return {"out": x["table"][np.clip(held["indices"], 0, len(x["table"]) - 1)]}
    if op.name == "copy" and held["x"].dtype == np.int32 and held["out"].dtype.itemsize == 2:
        return {"out": x["x"].astype(np.float32).astype(np.float64)}  # i32 to f16 goes through f32
    if op.name == "sample":
        return {"out": sampled.expected(x["x"], x["options"], x["state"], p["ahead"])}
    if op.name == "rope":
        x["positions"] = held["positions"].astype(np.float32).astype(np.float64)
    return {"out": np.broadcast_to(FORMULAS[op.name](x, p, shapes["out"]), shapes["out"])}


def _wide(x: Array, flush: bool) -> F64:
    wide = x.astype(np.float64)
    return np.where(np.abs(wide) < 2.0**-126, np.copysign(0, wide), wide) if flush else wide


def rounded(y: Array, dtype: np.dtype[Any]) -> Array:
    """Round float64 to a dtype: to nearest even, integers saturate, NaN becomes the integer 0."""
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        whole = np.where(np.isnan(y), 0, np.clip(np.rint(y), limits.min, limits.max))
        return whole.astype(np.int64).astype(dtype)
    if dtype == np.float16:
        return y.astype(np.float16)
    single = y.astype(np.float32)
    if dtype == np.float32:
        return single
    # bf16: keep the upper half, rounding on the lower half; NaN must stay NaN.
    bits = single.view(np.uint32).astype(np.uint64)
    half = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(single), np.uint16(0x7FC0), half).astype(np.uint16).view(dtype)


# -- formulas ---------------------------------------------------------------------------------

_erf = np.vectorize(math.erf, otypes=[np.float64])

UNARY: dict[str, Any] = {
    "neg": lambda x: -x,
    "abs": lambda x: np.where(np.signbit(x), -x, x),
    "sign": lambda x: np.where(np.isnan(x), x, (x > 0) * 1.0 - (x < 0) * 1.0),
    "square": lambda x: x * x,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "reciprocal": lambda x: 1 / x,
    "exp": np.exp,
    "log": np.log,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "relu": lambda x: np.where(x < 0, 0.0, x),
    "gelu": lambda x: x * (0.5 + 0.5 * _erf(x / math.sqrt(2))) if x.size else x,
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "floor": np.floor,
    "ceil": np.ceil,
    "round": lambda x: np.where(np.abs(x - np.trunc(x)) == 0.5, 2 * np.rint(x / 2), np.rint(x)),
}
BINARY: dict[str, Any] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "min": lambda a, b: np.where(np.isnan(a) | np.isnan(b), np.nan, np.where(a < b, a, b)),
    "max": lambda a, b: np.where(np.isnan(a) | np.isnan(b), np.nan, np.where(a > b, a, b)),
    "pow": np.power,
    "eq": lambda a, b: (a == b) * 1.0,
    "lt": lambda a, b: (a < b) * 1.0,
    "le": lambda a, b: (a <= b) * 1.0,
}


def _clamp(x: dict[str, F64], p: dict[str, Any], _s: Any) -> F64:
    v = np.where(x["x"] < p["low"], p["low"], x["x"])
    return np.where(v > p["high"], p["high"], v)


def _reduce(x: dict[str, F64], p: dict[str, Any], _s: Any) -> F64:
    v = x["x"]
    match p["function"]:
        case "sum":
            return v.sum(-1)
        case "mean":
            return v.sum(-1) / max(1, v.shape[-1])
        case "max":
            return v.max(-1, initial=-np.inf)
        case _:
            return v.min(-1, initial=np.inf)


def _softmax(x: dict[str, F64], p: dict[str, Any], _s: Any) -> F64:
    z = p["scale"] * x["x"]
    e = np.exp(z - z.max(-1, keepdims=True, initial=-np.inf))
    return e / e.sum(-1, keepdims=True)


def _rmsnorm(x: dict[str, F64], p: dict[str, Any], _s: Any) -> F64:
    v = x["x"]
    square = (v * v).sum(-1, keepdims=True) / max(1, v.shape[-1])
    return v / np.sqrt(square + p["eps"]) * x.get("weight", 1.0)


def _layernorm(x: dict[str, F64], p: dict[str, Any], _s: Any) -> F64:
    n = max(1, x["x"].shape[-1])
    v = x["x"] - x["x"].sum(-1, keepdims=True) / n
    variance = (v * v).sum(-1, keepdims=True) / n
    return v / np.sqrt(variance + p["eps"]) * x.get("weight", 1.0) + x.get("bias", 0.0)


def largest(x: F64, k: int) -> tuple[F64, npt.NDArray[np.int32]]:
    """The k largest of each row and where they lie; NaN counts as -infinity."""
    x = np.where(np.isnan(x), -np.inf, x)
    order = np.lexsort((np.broadcast_to(np.arange(x.shape[-1]), x.shape), -x), axis=-1)[..., :k]
    return np.take_along_axis(x, order, -1), order.astype(np.int32)


def _conv2d(x: dict[str, F64], p: dict[str, Any], shape: Any) -> F64:
    image, weight = x["x"], x["weight"]
    (n, c, h, w), (o, cg, kh, kw), (oh, ow) = image.shape, weight.shape, shape[2:]
    y = np.zeros((n, o, oh, ow))
    groups = c // cg
    for oy, ox, ky, kx in product(range(oh), range(ow), range(kh), range(kw)):
        iy = oy * p["stride_y"] + ky * p["dilation_y"] - p["pad_y"]
        ix = ox * p["stride_x"] + kx * p["dilation_x"] - p["pad_x"]
        if not (0 <= iy < h and 0 <= ix < w):
            continue
        for group in range(groups):
            pixel = image[:, group * cg : (group + 1) * cg, iy, ix]
            outputs = slice(group * o // groups, (group + 1) * o // groups)
            y[:, outputs, oy, ox] += pixel @ weight[outputs, :, ky, kx].T
    return y + x["bias"][:, None, None] if "bias" in x else y


def _resize(x: dict[str, F64], _p: dict[str, Any], shape: Any) -> F64:
    return _line(_line(x["x"], 2, shape[2]), 3, shape[3])


def _line(x: F64, axis: int, size: int) -> F64:
    """Linear interpolation along one axis, half-pixel centres, edges repeated."""
    have = x.shape[axis]
    at = np.clip((np.arange(size) + 0.5) * have / max(1, size) - 0.5, 0, have - 1)
    low = np.floor(at).astype(int)
    steps = [1] * 4
    steps[axis] = size
    part = (at - low).reshape(steps)
    return x.take(low, axis) * (1 - part) + x.take(np.minimum(low + 1, have - 1), axis) * part


def _rope(x: dict[str, F64], p: dict[str, Any], _s: Any) -> F64:
    v, frequencies = x["x"], x["frequencies"]
    y, angle = v.copy(), x["positions"][:, None, None] * frequencies
    cos, sin = p["scale"] * np.cos(angle), p["scale"] * np.sin(angle)
    first, second = rope_pairs(p["function"], len(frequencies))
    y[..., first] = v[..., first] * cos - v[..., second] * sin
    y[..., second] = v[..., second] * cos + v[..., first] * sin
    return y


def _attention(x: dict[str, F64], p: dict[str, Any], shape: Any) -> F64:
    y, group = np.zeros(shape), shape[1] // x["k"].shape[1]
    for rows, seen in rows_that_see(x["last"], len(x["k"]), p["window"]):
        for h in range(shape[1]):
            k, v = x["k"][seen, h // group], x["v"][seen, h // group]
            z = p["scale"] * (k * x["q"][rows, None, h]).sum(-1)
            z = p["softcap"] * np.tanh(z / p["softcap"]) if p["softcap"] else z
            e = np.exp(z - z.max(-1, keepdims=True))
            y[rows, h] = (e[..., None] * v).sum(1) / e.sum(-1, keepdims=True)
    return y


FORMULAS: dict[str, Any] = {
    "copy": lambda x, p, s: x["x"],
    "fill": lambda x, p, s: np.full(s, p["value"]),
    "unary": lambda x, p, s: UNARY[p["function"]](x["x"]),
    "clamp": _clamp,
    "binary": lambda x, p, s: BINARY[p["function"]](x["a"], x["b"]),
    "matmul": lambda x, p, s: p["scale"] * np.einsum("abmk,abkn->abmn", x["a"], x["b"], optimize=True),
    "reduce": _reduce,
    "softmax": _softmax,
    "rmsnorm": _rmsnorm,
    "layernorm": _layernorm,
    "argmax": lambda x, p, s: largest(x["x"], 1)[1][..., 0],
    "conv2d": _conv2d,
    "resize": _resize,
    "rope": _rope,
    "attention": _attention,
    "glu": lambda x, p, s: UNARY[p["function"]](x["a"]) * x["b"],
    "penalize": lambda x, p, s: sampled.penalized(x)[0],
}
AMPLITUDE = {name: FORMULAS[name] for name in ("matmul", "conv2d", "attention")} | {
    "glu": lambda x, p, s: np.broadcast_to(UNARY[p["function"]](x["a"]), s),
    "penalize": lambda x, p, s: sampled.penalized(x)[1],
}
"""Sums of products: the same formula over magnitudes bounds the rounding error. Of glu, the gate."""
