"""What every op means, in NumPy: the oracle that each player must agree with.

Clear before fast. Arithmetic is f32 whatever the operands' dtypes, results are converted at the end.
A player may treat f32 subnormals as zero in arithmetic; `copy` and `gather` keep every bit that fits.

Strides can name far more elements than there are bytes. Temporaries here stay within a small multiple of the
bytes that the operands span, so that a hostile tape costs time (which the work limit bounds), not memory.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from nocopy.memory.dtype import DType
from nocopy.tape import blocks, reference_language, reference_sample
from nocopy.tape.arrays import F32, Array, decoded, f32, slices, store
from nocopy.tape.ops import BINARY, BY_CODE, GLU, REDUCE, UNARY, Op, Operand
from nocopy.tape.record import Space
from nocopy.tape.validate import Tape


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
    return decoded(view, dtype, spec.axes.index(spec.blocks))


def _params(record: Any, op: Op) -> dict[str, Any]:
    values: dict[str, Any] = {"function": op.functions[int(record["function"])] if op.functions else ""}
    for i, spec in enumerate(op.params):
        raw = int(record["params"][i])
        values[spec.name] = raw if spec.kind == "u32" else struct.unpack("<f", struct.pack("<I", raw))[0]
    return values


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
    store(out, x)


def _fill(operands: list[Any], p: Mapping[str, Any]) -> None:
    store(operands[0], np.full((), p["value"], np.float32))


def _unary(operands: list[Any], p: Mapping[str, Any]) -> None:
    out, x = operands
    store(out, UNARY_MEANING[p["function"]](f32(x)))


def _clamp(operands: list[Any], p: Mapping[str, Any]) -> None:
    out, x = operands
    store(out, np.minimum(np.maximum(f32(x), np.float32(p["low"])), np.float32(p["high"])))


def _binary(operands: list[Any], p: Mapping[str, Any]) -> None:
    out, a, b = operands
    store(out, f32(BINARY_MEANING[p["function"]](f32(a), f32(b))))


def _matmul(operands: list[Any], p: Mapping[str, Any]) -> None:
    out, a, b = operands
    if not out.size:
        return
    y = np.zeros(out.shape, np.float32)
    for some in slices(a.shape[-1], max(a[..., :1].size, b[..., :1, :].size)):
        y += np.matmul(f32(a[..., some]), f32(b[..., some, :]))
    store(out, np.float32(p["scale"]) * y)


def _reduce(operands: list[Any], p: Mapping[str, Any]) -> None:
    out, x = operands
    if out.size:
        store(out, REDUCE_MEANING[p["function"]](f32(x)))


def _softmax(operands: list[Any], p: Mapping[str, Any]) -> None:
    out, x = operands
    if out.size:
        scaled = np.float32(p["scale"]) * f32(x)
        e = np.exp(scaled - scaled.max(-1, keepdims=True))
        store(out, e / e.sum(-1, keepdims=True))


def _rmsnorm(operands: list[Any], p: Mapping[str, Any]) -> None:
    out, x, weight = operands
    if out.size:
        x = f32(x)
        y = x / np.sqrt(np.mean(x * x, -1, keepdims=True) + np.float32(p["eps"]))
        store(out, y if weight is None else y * f32(weight))


def _layernorm(operands: list[Any], p: Mapping[str, Any]) -> None:
    out, x, weight, bias = operands
    if out.size:
        x = f32(x)
        centred = x - x.mean(-1, keepdims=True)
        y = centred / np.sqrt(np.mean(centred * centred, -1, keepdims=True) + np.float32(p["eps"]))
        y = y if weight is None else y * f32(weight)
        store(out, y if bias is None else y + f32(bias))


def _gather(operands: list[Any], _p: Mapping[str, Any]) -> None:
    out, table, indices = operands
    if out.size:
        store(out, table[np.clip(indices, 0, len(table) - 1)])


def _no_nan(x: Array) -> F32:
    x = f32(x)
    return np.where(np.isnan(x), np.float32(-np.inf), x)


def _largest(x: Array, k: int) -> tuple[F32, Array]:
    """The k largest values over the last axis and their indices, ties by lowest index."""
    rows = x.shape[:-1]
    values: Array = np.zeros((*rows, 0), np.float32)
    indices: Array = np.zeros((*rows, 0), np.int64)
    for some in slices(x.shape[-1], x[..., :1].size):
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
        store(values, best)
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
        for some in slices(cg, out.size):
            channels = first + np.arange(some.start, some.stop, dtype=np.int64)
            tap = f32(weight[:, some, ky, kx]).reshape(*y.shape[1:3], channels.shape[1])
            window = _window(x, channels, rows, columns)
            y += np.einsum("ngcyx,goc->ngoyx", window, tap, optimize=True)
    y = y.reshape(out.shape)
    store(out, y if bias is None else y + f32(bias)[:, None, None])


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
    return np.where(inside, f32(near), np.float32(0))


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
    top = f32(x[:, :, y0, x0]) * (1 - fx) + f32(x[:, :, y0, x1]) * fx
    bottom = f32(x[:, :, y1, x0]) * (1 - fx) + f32(x[:, :, y1, x1]) * fx
    store(out, top * (1 - fy) + bottom * fy)


def _glu(operands: list[Any], p: Mapping[str, Any]) -> None:
    out, a, b = operands
    store(out, UNARY_MEANING[p["function"]](f32(a)) * f32(b))


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
    "rope": reference_language.rope,
    "scatter": reference_language.scatter,
    "attention": reference_language.attention,
    "glu": _glu,
    "penalize": reference_sample.penalize,
    "sample": reference_sample.sample,
}
assert set(MEANING) == {op.name for op in BY_CODE.values()}
