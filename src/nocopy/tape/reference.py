"""What every op means, in NumPy: the oracle that each player must agree with.

Clear before fast. Arithmetic is f32 whatever the operands' dtypes, results are converted at the end.
A player may treat f32 subnormals as zero in arithmetic; `copy` and `gather` keep every bit that fits.

Strides can name far more elements than there are bytes. Temporaries here stay within a small multiple of the
bytes that the operands span, so that a hostile tape costs time (which the work limit bounds), not memory.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from nocopy.memory.dtype import DType
from nocopy.tape import blocks
from nocopy.tape.ops import BINARY, BY_CODE, GLU, REDUCE, UNARY, Op, Operand
from nocopy.tape.record import Space
from nocopy.tape.validate import Tape

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]

BLOCK = 2**24
"""Elements of a temporary that repeats its input: 64 MiB of f32."""


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
    with np.errstate(all="ignore"):
        operands = [_operand(record, slot, spec, dims, spaces) for slot, spec in enumerate(op.operands)]
        MEANING[op.name](operands, _params(record, op))


def _operand(
    record: Any, slot: int, spec: Operand, dims: Mapping[str, int], spaces: Mapping[Space, Array]
) -> Any:
    """The operand as a strided view of its space; None if it is absent. Input blocks come decoded."""
    operand = record["operands"][slot]
    dtype = DType(int(operand["dtype"]))
    if dtype is DType.NONE:
        return None
    kind = dtype.numpy if dtype.block == 1 else blocks.LAYOUTS[dtype]
    shape = tuple(dims[a] // (dtype.block if a == spec.blocks else 1) for a in spec.axes)
    strides = tuple(
        dtype.itemsize * (int(s) if a == spec.blocks else int(s) // dtype.block)
        for a, s in zip(spec.axes, operand["strides"], strict=False)
    )
    if 0 in shape:
        view = np.zeros(shape, kind)
    else:
        view = np.ndarray(shape, kind, spaces[Space(int(operand["space"]))], int(operand["offset"]), strides)
    if dtype not in blocks.LAYOUTS or spec.out:
        return view
    return _decoded(view, dtype, spec.axes.index(spec.blocks))


def _decoded(view: Array, dtype: DType, along: int) -> F32:
    """Blocks that lie along an axis, as f32. What overlaps is decoded once and overlaps again."""
    span = _span(view) if view.size else 0
    if view.size <= span:
        return np.moveaxis(blocks.decode(np.moveaxis(view, along, -1), dtype), -1, along)
    flat = blocks.decode(as_strided(view, (span,), (dtype.itemsize,)), dtype)
    shape = [size * (dtype.block if axis == along else 1) for axis, size in enumerate(view.shape)]
    steps = [step // dtype.itemsize * (4 if axis == along else 4 * dtype.block)
             for axis, step in enumerate(view.strides)]  # fmt: skip
    return as_strided(flat, shape, steps)


def _params(record: Any, op: Op) -> dict[str, Any]:
    values: dict[str, Any] = {"function": op.functions[int(record["function"])] if op.functions else ""}
    for i, spec in enumerate(op.params):
        raw = int(record["params"][i])
        values[spec.name] = raw if spec.kind == "u32" else struct.unpack("<f", struct.pack("<I", raw))[0]
    return values


def _f32(x: Array) -> F32:
    """X as f32. What overlaps in memory is converted once and overlaps again in the result."""
    if x.dtype == np.float32:
        return x
    span = _span(x)
    if x.size <= span:
        return x.astype(np.float32)
    flat = as_strided(x, (span,), (x.itemsize,)).astype(np.float32)
    return as_strided(flat, x.shape, [step // x.itemsize * 4 for step in x.strides])


def _span(x: Array) -> int:
    """Elements from the first to the last in memory, both included."""
    return 1 + sum((size - 1) * step for size, step in zip(x.shape, x.strides, strict=True)) // x.itemsize


def _blocks(size: int, rows: int) -> Iterator[slice]:
    """Slices of an axis that is `size` long, each naming about BLOCK elements over `rows` rows."""
    step = max(1, BLOCK // max(1, rows))
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


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
assert set(GLU) <= set(UNARY)


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
    if not out.size:
        return
    y = np.zeros(out.shape, np.float32)
    for some in _blocks(a.shape[-1], max(a[..., :1].size, b[..., :1, :].size)):
        y += np.matmul(_f32(a[..., some]), _f32(b[..., some, :]))
    _store(out, np.float32(p["scale"]) * y)


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


def _largest(x: Array, k: int) -> tuple[F32, Array]:
    """The k largest values over the last axis and their indices, ties by lowest index."""
    rows = x.shape[:-1]
    values: Array = np.zeros((*rows, 0), np.float32)
    indices: Array = np.zeros((*rows, 0), np.int64)
    for some in _blocks(x.shape[-1], x[..., :1].size):
        block = _no_nan(x[..., some])
        places = np.broadcast_to(np.arange(some.start, some.stop, dtype=np.int64), block.shape)
        values, indices = np.append(values, block, -1), np.append(indices, places, -1)
        order = np.argsort(-values, -1, kind="stable")[..., :k]  # stable: earlier blocks win ties
        values, indices = np.take_along_axis(values, order, -1), np.take_along_axis(indices, order, -1)
    return values, indices


def _argmax(operands: list[Any], _p: Mapping[str, Any]) -> None:
    out, x = operands
    if out.size:
        out[...] = _largest(x, 1)[1][..., 0]


def _topk(operands: list[Any], _p: Mapping[str, Any]) -> None:
    values, indices, x = operands
    if values.size:
        best, places = _largest(x, values.shape[-1])
        _store(values, best)
        indices[...] = places


def _conv2d(operands: list[Any], p: Mapping[str, Any]) -> None:
    out, x, weight, bias = operands
    if not out.size:
        return
    (n, c), (o, cg, kh, kw), (oh, ow) = x.shape[:2], weight.shape, out.shape[2:]
    first = np.arange(0, int(c), int(cg), dtype=np.int64)[:, None]  # channel of each group
    y: Array = np.zeros((n, len(first), o // len(first), oh, ow), np.float32)
    for ky, kx in product(range(kh), range(kw)):
        rows = _taps(oh, p["stride_y"], ky * p["dilation_y"] - p["pad_y"])
        columns = _taps(ow, p["stride_x"], kx * p["dilation_x"] - p["pad_x"])
        for some in _blocks(cg, out.size):
            channels = first + np.arange(some.start, some.stop, dtype=np.int64)
            tap = _f32(weight[:, some, ky, kx]).reshape(*y.shape[1:3], channels.shape[1])
            window = _window(x, channels, rows, columns)
            y += np.einsum("ngcyx,goc->ngoyx", window, tap, optimize=True)
    y = y.reshape(out.shape)
    _store(out, y if bias is None else y + _f32(bias)[:, None, None])


def _taps(count: int, stride: int, start: int) -> npt.NDArray[np.int64]:
    """The input index that each output index looks at."""
    return np.arange(count, dtype=np.int64) * stride + start


def _window(x: Array, channels: Array, rows: Array, columns: Array) -> F32:
    """x[:, channels, rows, columns], an axis for each axis of those; 0 where rows or columns lie outside."""
    h, w = x.shape[2:]
    inside = ((rows >= 0) & (rows < h))[:, None] & ((columns >= 0) & (columns < w))
    if not inside.any():
        return np.zeros((len(x), *channels.shape, *inside.shape), np.float32)
    near = x[:, channels[..., None, None], np.clip(rows, 0, h - 1)[:, None], np.clip(columns, 0, w - 1)]
    return np.where(inside, _f32(near), np.float32(0))


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
    fy = fy[:, None]
    y0, y1 = y0[:, None], y1[:, None]
    top = _f32(x[:, :, y0, x0]) * (1 - fx) + _f32(x[:, :, y0, x1]) * fx
    bottom = _f32(x[:, :, y1, x0]) * (1 - fx) + _f32(x[:, :, y1, x1]) * fx
    _store(out, top * (1 - fy) + bottom * fy)


def _rope(operands: list[Any], p: Mapping[str, Any]) -> None:
    out, x, frequencies, positions = operands
    if not out.size:
        return
    x, f = _f32(x), len(frequencies)
    angle = (positions.astype(np.float32)[:, None] * frequencies)[:, None, :]
    cos, sin = np.float32(p["scale"]) * np.cos(angle), np.float32(p["scale"]) * np.sin(angle)
    interleaved = p["function"] == "interleaved"
    first, second = (slice(0, 2 * f, 2), slice(1, 2 * f, 2)) if interleaved else (slice(f), slice(f, 2 * f))
    a, b = x[..., first], x[..., second]
    y = x.copy()
    y[..., first] = a * cos - b * sin
    y[..., second] = a * sin + b * cos
    _store(out, y)


def _scatter(operands: list[Any], _p: Mapping[str, Any]) -> None:
    out, x, indices = operands
    if not x.size:
        return
    for some in _blocks(len(x), x.shape[1]):
        inside = (indices[some] >= 0) & (indices[some] < len(out))
        rows, places = x[some][inside], indices[some][inside]
        if out.dtype == blocks.LAYOUTS[DType.Q8_0]:
            out[places] = blocks.encode(_f32(rows), DType.Q8_0)
        else:
            out[places] = convert(rows, out.dtype)


def _attention(operands: list[Any], p: Mapping[str, Any]) -> None:
    out, q, k, v, last = operands
    group = q.shape[1] // k.shape[1]
    for r, h in product(range(out.shape[0]), range(out.shape[1])):
        stop = min(int(last[r]) + 1, len(k))
        start = max(0, stop - p["window"]) if p["window"] else 0
        if stop <= start:
            out[r, h] = 0
            continue
        scores = np.float32(p["scale"]) * (_f32(k[start:stop, h // group]) @ _f32(q[r, h]))
        if p["softcap"]:
            scores = np.float32(p["softcap"]) * np.tanh(scores / np.float32(p["softcap"]))
        e = np.exp(scores - scores.max())
        _store(out[r, h], (e / e.sum()) @ _f32(v[start:stop, h // group]))


def _glu(operands: list[Any], p: Mapping[str, Any]) -> None:
    out, a, b = operands
    _store(out, UNARY_MEANING[p["function"]](_f32(a)) * _f32(b))


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
    "rope": _rope,
    "scatter": _scatter,
    "attention": _attention,
    "glu": _glu,
}
assert set(MEANING) == {op.name for op in BY_CODE.values()}
