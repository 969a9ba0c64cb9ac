"""What every op means, in NumPy: the oracle that each player must agree with.

Clear before fast. Arithmetic is f32 whatever the operands' dtypes, results are converted at the end.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from nocopy.memory.dtype import DType
from nocopy.tape.ops import BINARY, BY_CODE, REDUCE, UNARY, Op
from nocopy.tape.record import Space
from nocopy.tape.validate import Tape

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]


def play(tape: Tape, spaces: Mapping[Space, Array]) -> None:
    """Play every record in order.

    Args:
        tape: a validated tape.
        spaces: the bytes of each space, as writable uint8 arrays at least as large as `tape.sizes` says.
    """
    for record in tape.records:
        play_record(record, spaces)


def play_record(record: Any, spaces: Mapping[Space, Array]) -> None:
    """Play one validated record."""
    op = BY_CODE[int(record["opcode"])]
    dims = {name: int(d) for name, d in zip(op.dims, record["dims"], strict=False)}
    operands = [_operand(record, slot, spec.axes, dims, spaces) for slot, spec in enumerate(op.operands)]
    with np.errstate(all="ignore"):
        MEANING[op.name](operands, _params(record, op))


def _operand(
    record: Any, slot: int, axes: tuple[str, ...], dims: Mapping[str, int], spaces: Mapping[Space, Array]
) -> Any:
    """The operand as a strided view of its space; None if it is absent."""
    operand = record["operands"][slot]
    dtype = DType(int(operand["dtype"]))
    if dtype is DType.NONE:
        return None
    shape = tuple(dims[a] for a in axes)
    strides = tuple(int(s) * dtype.itemsize for s in operand["strides"][: len(axes)])
    if 0 in shape:
        return np.zeros(shape, dtype.numpy)
    space = spaces[Space(int(operand["space"]))]
    return np.ndarray(shape, dtype.numpy, space, int(operand["offset"]), strides)


def _params(record: Any, op: Op) -> dict[str, Any]:
    values: dict[str, Any] = {"function": op.functions[int(record["function"])] if op.functions else ""}
    for i, spec in enumerate(op.params):
        raw = int(record["params"][i])
        values[spec.name] = raw if spec.kind == "u32" else struct.unpack("<f", struct.pack("<I", raw))[0]
    return values


def _f32(x: Array) -> F32:
    return x.astype(np.float32)


def convert(x: Array, dtype: np.dtype[Any]) -> Array:
    """Convert as a tape does: to an integer half to even, saturating, NaN to 0; else through f32."""
    if x.dtype == dtype:
        return x
    if dtype.kind in "iu":
        if x.dtype.kind in "iu":
            wide = x.astype(np.int64)
        else:
            wide = np.nan_to_num(np.rint(_f32(x)), nan=0.0, posinf=3e9, neginf=-3e9).astype(np.float64)
        limits = np.iinfo(dtype)
        return np.clip(wide, limits.min, limits.max).astype(dtype)
    return _f32(x).astype(dtype)


def _store(out: Array, value: Array) -> None:
    out[...] = convert(value, out.dtype)


def _erf(x: F32) -> F32:
    return np.vectorize(math.erf, otypes=[np.float32])(x) if x.size else x


UNARY_MEANING: dict[str, Callable[[F32], Any]] = {
    "neg": np.negative,
    "abs": np.abs,
    "sign": np.sign,
    "square": np.square,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: np.float32(1) / np.sqrt(x),
    "reciprocal": lambda x: np.float32(1) / x,
    "exp": np.exp,
    "log": np.log,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, np.float32(0)),
    "gelu": lambda x: np.float32(0.5) * x * (1 + _erf(x * np.float32(math.sqrt(0.5)))),
    "gelu_tanh": lambda x: (
        np.float32(0.5)
        * x
        * (1 + np.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)))
    ),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.rint,
}
BINARY_MEANING: dict[str, Callable[[F32, F32], Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "min": np.minimum,
    "max": np.maximum,
    "pow": np.power,
    "eq": np.equal,
    "lt": np.less,
    "le": np.less_equal,
}
REDUCE_MEANING: dict[str, Callable[[F32], Any]] = {
    "sum": lambda x: x.sum(-1, dtype=np.float32),
    "mean": lambda x: x.mean(-1, dtype=np.float32),
    "max": lambda x: x.max(-1),
    "min": lambda x: x.min(-1),
}
assert tuple(UNARY_MEANING) == UNARY
assert tuple(BINARY_MEANING) == BINARY
assert tuple(REDUCE_MEANING) == REDUCE


def _copy(operands: list[Any], _p: Mapping[str, Any]) -> None:
    out, x = operands
    _store(out, x)


def _fill(operands: list[Any], p: Mapping[str, Any]) -> None:
    _store(operands[0], np.full((), p["value"], np.float32))


def _unary(operands: list[Any], p: Mapping[str, Any]) -> None:
    out, x = operands
    _store(out, UNARY_MEANING[p["function"]](_f32(x)))


def _clamp(operands: list[Any], p: Mapping[str, Any]) -> None:
    out, x = operands
    _store(out, np.minimum(np.maximum(_f32(x), np.float32(p["low"])), np.float32(p["high"])))


def _binary(operands: list[Any], p: Mapping[str, Any]) -> None:
    out, a, b = operands
    _store(out, _f32(BINARY_MEANING[p["function"]](_f32(a), _f32(b))))


def _matmul(operands: list[Any], p: Mapping[str, Any]) -> None:
    out, a, b = operands
    _store(out, np.float32(p["scale"]) * np.matmul(_f32(a), _f32(b)))


def _reduce(operands: list[Any], p: Mapping[str, Any]) -> None:
    out, x = operands
    if out.size:
        _store(out, REDUCE_MEANING[p["function"]](_f32(x)))


def _softmax(operands: list[Any], p: Mapping[str, Any]) -> None:
    out, x = operands
    if out.size:
        scaled = np.float32(p["scale"]) * _f32(x)
        e = np.exp(scaled - scaled.max(-1, keepdims=True))
        _store(out, e / e.sum(-1, keepdims=True))


def _rmsnorm(operands: list[Any], p: Mapping[str, Any]) -> None:
    out, x, weight = operands
    if out.size:
        x = _f32(x)
        y = x / np.sqrt(np.mean(x * x, -1, keepdims=True) + np.float32(p["eps"]))
        _store(out, y if weight is None else y * _f32(weight))


def _layernorm(operands: list[Any], p: Mapping[str, Any]) -> None:
    out, x, weight, bias = operands
    if out.size:
        x = _f32(x)
        centred = x - x.mean(-1, keepdims=True)
        y = centred / np.sqrt(np.mean(centred * centred, -1, keepdims=True) + np.float32(p["eps"]))
        y = y if weight is None else y * _f32(weight)
        _store(out, y if bias is None else y + _f32(bias))


def _gather(operands: list[Any], _p: Mapping[str, Any]) -> None:
    out, table, indices = operands
    if out.size:
        _store(out, table[np.clip(indices, 0, len(table) - 1)])


def _no_nan(x: Array) -> F32:
    x = _f32(x)
    return np.where(np.isnan(x), np.float32(-np.inf), x)


def _argmax(operands: list[Any], _p: Mapping[str, Any]) -> None:
    out, x = operands
    if out.size:
        out[...] = np.argmax(_no_nan(x), -1)


def _topk(operands: list[Any], _p: Mapping[str, Any]) -> None:
    values, indices, x = operands
    if values.size:
        x = _no_nan(x)
        order = np.argsort(-x, -1, kind="stable")[..., : values.shape[-1]]
        _store(values, np.take_along_axis(x, order, -1))
        indices[...] = order


def _conv2d(operands: list[Any], p: Mapping[str, Any]) -> None:
    out, x, weight, bias = operands
    if not out.size:
        return
    (n, c), (o, cg, kh, kw), (oh, ow) = x.shape[:2], weight.shape, out.shape[2:]
    groups = c // cg
    x, weight = _f32(x), _f32(weight)
    y = np.zeros((n, groups, o // groups, oh, ow), np.float32)
    for ky in range(kh):
        for kx in range(kw):
            rows = _taps(oh, p["stride_y"], ky * p["dilation_y"] - p["pad_y"])
            columns = _taps(ow, p["stride_x"], kx * p["dilation_x"] - p["pad_x"])
            window = _window(x, rows, columns).reshape(n, groups, cg, oh, ow)
            tap = weight[:, :, ky, kx].reshape(groups, o // groups, cg)
            y += np.einsum("ngcyx,goc->ngoyx", window, tap, optimize=True)
    y = y.reshape(n, o, oh, ow)
    _store(out, y if bias is None else y + _f32(bias)[:, None, None])


def _taps(count: int, stride: int, start: int) -> npt.NDArray[np.int64]:
    """The input index that each output index looks at."""
    return np.arange(count, dtype=np.int64) * stride + start


def _window(x: F32, rows: Array, columns: Array) -> F32:
    """x[:, :, rows, columns], 0 where those lie outside."""
    h, w = x.shape[2:]
    if h == 0 or w == 0:
        return np.zeros((*x.shape[:2], len(rows), len(columns)), np.float32)
    inside = ((rows >= 0) & (rows < h))[:, None] & ((columns >= 0) & (columns < w))
    window = x[:, :, np.clip(rows, 0, h - 1)[:, None], np.clip(columns, 0, w - 1)]
    return np.where(inside, window, np.float32(0))


def _axis(size: int, out_size: int) -> tuple[Array, Array, F32]:
    """For each output index: the two input indices and the weight of the second."""
    at = (np.arange(out_size, dtype=np.float32) + np.float32(0.5)) * np.float32(size / out_size) - np.float32(
        0.5
    )
    at = np.clip(at, np.float32(0), np.float32(size - 1))
    low = np.floor(at).astype(np.int64)
    return low, np.minimum(low + 1, size - 1), at - low.astype(np.float32)


def _resize(operands: list[Any], _p: Mapping[str, Any]) -> None:
    out, x = operands
    if not out.size:
        return
    y0, y1, fy = _axis(x.shape[2], out.shape[2])
    x0, x1, fx = _axis(x.shape[3], out.shape[3])
    x, fy = _f32(x), fy[:, None]
    top = x[:, :, y0][..., x0] * (1 - fx) + x[:, :, y0][..., x1] * fx
    bottom = x[:, :, y1][..., x0] * (1 - fx) + x[:, :, y1][..., x1] * fx
    _store(out, top * (1 - fy) + bottom * fy)


MEANING: dict[str, Callable[[list[Any], Mapping[str, Any]], None]] = {
    "copy": _copy,
    "fill": _fill,
    "unary": _unary,
    "clamp": _clamp,
    "binary": _binary,
    "matmul": _matmul,
    "reduce": _reduce,
    "softmax": _softmax,
    "rmsnorm": _rmsnorm,
    "layernorm": _layernorm,
    "gather": _gather,
    "argmax": _argmax,
    "topk": _topk,
    "conv2d": _conv2d,
    "resize": _resize,
}
assert set(MEANING) == {op.name for op in BY_CODE.values()}
