"""Builds tapes from tensors: one method for each op, NumPy's broadcasting rules."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from nocopy.errors import UsageError
from nocopy.memory.dtype import DType
from nocopy.tape.ops import BY_NAME, ROPE, Op, Param
from nocopy.tape.record import MAX_AXES, RECORD, VERSION, Space
from nocopy.tape.validate import DEFAULT_WORK_LIMIT, Records, Tape, validate


class TensorLike(Protocol):
    """What a builder needs to know of a tensor; `TensorView` and `Tensor` both have it."""

    @property
    def space(self) -> int:
        """`Space` number."""
        ...

    @property
    def offset(self) -> int:
        """Bytes from the start of the space."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """At most four axes."""
        ...

    @property
    def strides(self) -> tuple[int, ...]:
        """In elements."""
        ...

    @property
    def dtype(self) -> DType:
        """Element type."""
        ...


class TapeBuilder:
    """Collects records. Outputs come first, as in `out = op(inputs)`.

    Shapes are checked here, with the names of the arguments; bounds, alignment and overlap by `validate`.
    """

    def __init__(self) -> None:
        self._records: list[Records] = []

    def __len__(self) -> int:
        return len(self._records)

    def __bytes__(self) -> bytes:
        return b"".join(r.tobytes() for r in self._records)

    def build(self, spaces: Mapping[int, int], *, work_limit: int = DEFAULT_WORK_LIMIT) -> Tape:
        """Validate what was recorded against the sizes of the spaces, in bytes.

        Raises:
            TapeError: a record does not fit; see `validate`.
        """
        return validate(bytes(self), {Space(s): n for s, n in spaces.items()}, work_limit=work_limit)

    def copy(self, out: TensorLike, x: TensorLike) -> None:
        """Copy x, converted to out's dtype and broadcast to its shape."""
        self._grid("copy", out, {"x": x})

    def fill(self, out: TensorLike, value: float) -> None:
        """Set every element to value."""
        self._grid("fill", out, {}, value=value)

    def unary(self, function: str, out: TensorLike, x: TensorLike) -> None:
        """Apply function to x: out = function(x); the functions are listed in `ops.UNARY`."""
        self._grid("unary", out, {"x": x}, function=function)

    def clamp(self, out: TensorLike, x: TensorLike, low: float, high: float) -> None:
        """Limit x to [low, high]."""
        self._grid("clamp", out, {"x": x}, low=low, high=high)

    def binary(self, function: str, out: TensorLike, a: TensorLike, b: TensorLike) -> None:
        """Combine a and b, broadcast: out = function(a, b); the functions are listed in `ops.BINARY`."""
        self._grid("binary", out, {"a": a, "b": b}, function=function)

    def matmul(self, out: TensorLike, a: TensorLike, b: TensorLike, scale: float = 1.0) -> None:
        """Multiply matrices: out[..., m, n] = scale * a[..., m, k] @ b[..., k, n].

        There are at most two batch axes; they broadcast.

        Transpose an operand by passing its transposed view; no bytes move.
        """
        for name, t in (("out", out), ("a", a), ("b", b)):
            if len(t.shape) < 2:
                raise UsageError(f"matmul: {name} has shape {t.shape}; two to four axes are needed")
        (m, k), (k2, n) = a.shape[-2:], b.shape[-2:]
        if k != k2 or out.shape[-2:] != (m, n):
            raise UsageError(f"matmul: out {out.shape} = a {a.shape} @ b {b.shape} does not fit together")
        batch = _pad(out.shape, out.strides)[0][:2]
        shapes = {"out": (*batch, m, n), "a": (*batch, m, k), "b": (*batch, k, n)}
        self._emit("matmul", {"out": out, "a": a, "b": b}, shapes, (*batch, m, n, k), scale=scale)

    def reduce(self, function: str, out: TensorLike, x: TensorLike) -> None:
        """Apply function over the last axis of x; reduce another axis by transposing the view."""
        self._rows("reduce", {"out": out}, {"x": x}, drop=("out",), function=function)

    def softmax(self, out: TensorLike, x: TensorLike, scale: float = 1.0) -> None:
        """Softmax of scale * x over the last axis."""
        self._rows("softmax", {"out": out}, {"x": x}, scale=scale)

    def rmsnorm(self, out: TensorLike, x: TensorLike, weight: TensorLike | None, eps: float = 1e-5) -> None:
        """Root-mean-square normalisation over the last axis; weight has that axis only."""
        self._rows("rmsnorm", {"out": out}, {"x": x}, {"weight": weight}, eps=eps)

    def layernorm(
        self,
        out: TensorLike,
        x: TensorLike,
        weight: TensorLike | None = None,
        bias: TensorLike | None = None,
        eps: float = 1e-5,
    ) -> None:
        """Layer normalisation over the last axis; weight and bias have that axis only."""
        self._rows("layernorm", {"out": out}, {"x": x}, {"weight": weight, "bias": bias}, eps=eps)

    def gather(self, out: TensorLike, table: TensorLike, indices: TensorLike) -> None:
        """Pick rows: out[r] = table[indices[r]]; indices are i32 and clamped to the table."""
        if len(table.shape) != 2 or len(indices.shape) != 1:
            raise UsageError(f"gather: table {table.shape} needs two axes and indices {indices.shape} one")
        (t, w), (r,) = table.shape, indices.shape
        shapes = {"out": (r, w), "table": (t, w), "indices": (r,)}
        self._emit("gather", {"out": out, "table": table, "indices": indices}, shapes, (r, w, t))

    def argmax(self, out: TensorLike, x: TensorLike) -> None:
        """Set out (i32) to the index of the largest value over the last axis."""
        self._rows("argmax", {"out": out}, {"x": x}, drop=("out",))

    def topk(self, values: TensorLike, indices: TensorLike, x: TensorLike) -> None:
        """The k largest values over the last axis of x and their indices (i32); k is values' last axis."""
        if not values.shape:
            raise UsageError("topk: values has no axis; its last axis gives k")
        rows, _ = _split(x)
        k = values.shape[-1]
        shapes = {"values": (*rows, k), "indices": (*rows, k), "x": (*rows, x.shape[-1])}
        operands = {"values": values, "indices": indices, "x": x}
        self._emit("topk", operands, shapes, (*rows, x.shape[-1], k))

    def conv2d(
        self,
        out: TensorLike,
        x: TensorLike,
        weight: TensorLike,
        bias: TensorLike | None = None,
        *,
        stride: tuple[int, int] = (1, 1),
        pad: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
    ) -> None:
        """2-D convolution. Axes: x [n,c,h,w], weight [o,c/groups,kh,kw], out [n,o,oh,ow], bias [o].

        Other memory layouts (NHWC) are permuted views. `pad` is the zero border at the top and left; out's
        size says how far the window goes at the bottom and right, where outside is zero as well.
        """
        for name, t in (("out", out), ("x", x), ("weight", weight)):
            if len(t.shape) != 4:
                raise UsageError(f"conv2d: {name} has shape {t.shape}; four axes are needed")
        (n, c, h, w), (o, cg, kh, kw), (oh, ow) = x.shape, weight.shape, out.shape[2:]
        shapes = {"out": (n, o, oh, ow), "x": x.shape, "weight": weight.shape, "bias": (o,)}
        operands = {"out": out, "x": x, "weight": weight, "bias": bias}
        params = dict(zip(("stride_y", "stride_x", "pad_y", "pad_x", "dilation_y", "dilation_x"),
                          (*stride, *pad, *dilation), strict=True))  # fmt: skip
        self._emit("conv2d", operands, shapes, (n, c, h, w, o, cg, kh, kw, oh, ow), **params)

    def resize(self, out: TensorLike, x: TensorLike) -> None:
        """Bilinear resize of x [n,c,h,w] to out [n,c,oh,ow], half-pixel centres."""
        if len(x.shape) != 4 or len(out.shape) != 4:
            raise UsageError(f"resize: x {x.shape} and out {out.shape} need four axes")
        (n, c, h, w), (oh, ow) = x.shape, out.shape[2:]
        self._emit(
            "resize",
            {"out": out, "x": x},
            {"out": (n, c, oh, ow), "x": x.shape},
            (n, c, h, w, oh, ow),
        )

    def rope(
        self,
        out: TensorLike,
        x: TensorLike,
        frequencies: TensorLike,
        positions: TensorLike,
        *,
        interleaved: bool = False,
        scale: float = 1.0,
    ) -> None:
        """Rotary positions. Axes: x and out [r,h,n], frequencies [f] (f32), positions [r] (i32).

        The first 2f elements of each head turn, the rest is copied. Pairs are (i, i+f), or (2i, 2i+1) when
        interleaved. `scale` multiplies what was turned.
        """
        r, h, n = _three("rope: x", x)
        if len(frequencies.shape) != 1:
            raise UsageError(f"rope: frequencies has shape {frequencies.shape}; one axis is needed")
        (f,) = frequencies.shape
        shapes = {"out": (r, h, n), "x": (r, h, n), "frequencies": (f,), "positions": (r,)}
        operands = {"out": out, "x": x, "frequencies": frequencies, "positions": positions}
        self._emit("rope", operands, shapes, (r, h, n, f), ROPE[interleaved], scale=scale)

    def scatter(self, out: TensorLike, x: TensorLike, indices: TensorLike) -> None:
        """Put rows: out[indices[r]] = x[r], converted; an index outside the table writes nothing.

        If two indices are the same, one of their rows is written.
        """
        if len(out.shape) != 2 or len(x.shape) != 2 or len(indices.shape) != 1:
            raise UsageError(
                f"scatter: out {out.shape} and x {x.shape} need two axes and indices {indices.shape} one"
            )
        t, (r, w) = out.shape[0], x.shape
        shapes = {"out": (t, w), "x": (r, w), "indices": (r,)}
        self._emit("scatter", {"out": out, "x": x, "indices": indices}, shapes, (r, w, t))

    def attention(
        self,
        out: TensorLike,
        q: TensorLike,
        k: TensorLike,
        v: TensorLike,
        last: TensorLike,
        *,
        scale: float,
        softcap: float = 0.0,
        window: int = 0,
    ) -> None:
        """Attention of r queries over t cached tokens. Axes: out and q [r,h,n], k and v [t,g,n], last [r].

        Query r sees tokens 0 to last[r] (i32, clamped to t-1; below 0 it sees none and gives 0), and of those
        only the last `window` unless that is 0. Scores are scale * q.k, then softcap * tanh(score / softcap)
        unless softcap is 0. h heads share g groups of keys: grouped-query attention.
        """
        r, h, n = _three("attention: q", q)
        t, g, _ = _three("attention: k", k)
        shapes = {"out": (r, h, n), "q": (r, h, n), "k": (t, g, n), "v": (t, g, n), "last": (r,)}
        operands = {"out": out, "q": q, "k": k, "v": v, "last": last}
        dims = (r, h, n, t, g)
        self._emit("attention", operands, shapes, dims, scale=scale, softcap=softcap, window=window)

    def glu(self, function: str, out: TensorLike, a: TensorLike, b: TensorLike) -> None:
        """Gate: out = function(a) * b; the functions are listed in `ops.GLU`."""
        self._grid("glu", out, {"a": a, "b": b}, function)

    def penalize(self, out: TensorLike, x: TensorLike, recent: TensorLike, options: TensorLike) -> None:
        """Lower the scores of recent tokens. Axes: out and x [r,n], recent [r,w] (i32), options [r,4] (f32).

        What is recent costs a score once for each token, however often it comes: it is multiplied by
        options 0 if it is above 0, else by options 1; then options 2 times the number of times and options 3
        are subtracted. Entries that are no index of x do not count.
        """
        (r, n), (_, w), (_, o) = (_two(f"penalize: {what}", t) for what, t in
                                  (("x", x), ("recent", recent), ("options", options)))  # fmt: skip
        shapes = {"out": (r, n), "x": (r, n), "recent": (r, w), "options": (r, o)}
        operands = {"out": out, "x": x, "recent": recent, "options": options}
        self._emit("penalize", operands, shapes, (r, n, w, o))

    def sample(
        self, out: TensorLike, x: TensorLike, options: TensorLike, state: TensorLike, *, ahead: int = 0
    ) -> None:
        """Draw an index from each row of scores. Axes: x [r,n], options [r,3] (f32), state [r,5] (i32),
        out [r] (i32).

        `ops.CHOICE` and `ops.DRAW` name the numbers of options and state; `reference_sample.token` says what
        they do. `ahead` is added to the number of the draw. A row whose largest score is not finite gives -1.
        """
        (r, n), (_, o), (_, s) = (_two(f"sample: {what}", t) for what, t in
                                  (("x", x), ("options", options), ("state", state)))  # fmt: skip
        shapes = {"out": (r,), "x": (r, n), "options": (r, o), "state": (r, s)}
        operands = {"out": out, "x": x, "options": options, "state": state}
        self._emit("sample", operands, shapes, (r, n, o, s), ahead=ahead)

    # -- shapes to records ----------------------------------------------------------------------------------

    def _grid(
        self,
        op: str,
        out: TensorLike,
        inputs: Mapping[str, TensorLike],
        function: str | None = None,
        **params: float,
    ) -> None:
        dims, _ = _pad(out.shape, out.strides)
        operands = {"out": out, **inputs}
        self._emit(op, operands, dict.fromkeys(operands, dims), dims, function, **params)

    def _rows(
        self,
        op: str,
        outputs: Mapping[str, TensorLike],
        inputs: Mapping[str, TensorLike],
        vectors: Mapping[str, TensorLike | None] | None = None,
        drop: Sequence[str] = (),
        function: str | None = None,
        **params: float,
    ) -> None:
        x = inputs["x"]
        rows, n = _split(x)
        shapes = {name: rows if name in drop else (*rows, n) for name in (*outputs, *inputs)}
        shapes |= dict.fromkeys(vectors or {}, (n,))
        self._emit(op, {**outputs, **inputs, **(vectors or {})}, shapes, (*rows, n), function, **params)

    def _emit(
        self,
        name: str,
        operands: Mapping[str, TensorLike | None],
        shapes: Mapping[str, tuple[int, ...]],
        dims: tuple[int, ...],
        function: str | None = None,
        **params: float,
    ) -> None:
        op = BY_NAME[name]
        if not all(0 <= d < 2**31 for d in dims):
            raise UsageError(f"{name}: dims {dims} were asked for; each must lie in 0 to 2**31 - 1")
        record = np.zeros((), RECORD)
        record["version"], record["opcode"] = VERSION, op.code
        record["function"] = _function(op, function)
        record["dims"][: len(dims)] = dims
        for slot, spec in enumerate(op.operands):
            tensor = operands[spec.name]
            if tensor is not None:
                what = f"{name}: {spec.name}"
                strides = _broadcast(what, tensor, shapes[spec.name], repeat=not spec.out)
                if not 0 <= tensor.offset < 2**64 or not all(0 <= s < 2**32 for s in strides):
                    raise UsageError(
                        f"{what} starts at byte {tensor.offset} and has strides {tensor.strides};"
                        " a record holds no negative ones and strides below 2**32 elements"
                    )
                four = (*strides, *(0,) * (MAX_AXES - len(strides)))
                record["operands"][slot] = (tensor.offset, tensor.dtype, tensor.space, 0, four)
        for i, spec in enumerate(op.params):
            record["params"][i] = _word(f"{name}: {spec.name}", spec, params[spec.name])
        self._records.append(record)


def _function(op: Op, function: str | None) -> int:
    if function is None:
        return 0
    if function not in op.functions:
        raise UsageError(
            f"{op.name}: function {function!r} was asked for; there are {', '.join(op.functions)}"
        )
    return op.functions.index(function)


def _pad(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Left-pad to four axes: size 1, stride 0."""
    missing = MAX_AXES - len(shape)
    if missing < 0:
        raise UsageError(f"a tensor of shape {shape} was given; at most {MAX_AXES} axes fit a record")
    return (1,) * missing + tuple(shape), (0,) * missing + tuple(strides)


def _split(x: TensorLike) -> tuple[tuple[int, ...], int]:
    """X's shape as three row axes and the last axis."""
    if not x.shape:
        raise UsageError("an op over the last axis was asked for; x has no axes")
    shape, _ = _pad(x.shape, x.strides)
    return shape[:3], shape[3]


def _two(what: str, tensor: TensorLike) -> tuple[int, int]:
    if len(tensor.shape) != 2:
        raise UsageError(f"{what} has shape {tensor.shape}; two axes are needed")
    return tensor.shape


def _three(what: str, tensor: TensorLike) -> tuple[int, int, int]:
    if len(tensor.shape) != 3:
        raise UsageError(f"{what} has shape {tensor.shape}; three axes are needed")
    return tensor.shape


def _broadcast(what: str, tensor: TensorLike, shape: tuple[int, ...], *, repeat: bool) -> tuple[int, ...]:
    """Strides that make `tensor` look like `shape`: NumPy's rules, 0 where it repeats. Outputs must not."""
    missing = len(shape) - len(tensor.shape)
    if missing < 0:
        extra, tail = tensor.shape[:-missing], tensor.shape[-missing:]
        if any(size != 1 for size in extra):
            raise UsageError(f"{what} has shape {tensor.shape}; {shape} is needed")
        sizes, steps = tail, tensor.strides[-missing:]
    else:
        sizes = (1,) * missing + tuple(tensor.shape)
        steps = (0,) * missing + tuple(tensor.strides)
    for have, want in zip(sizes, shape, strict=True):
        if have != want and not (repeat and have == 1):
            needed = f"it does not broadcast to {shape}" if repeat else f"{shape} is needed"
            raise UsageError(f"{what} has shape {tensor.shape}; {needed}")
    return tuple(0 if have == 1 else step for have, step in zip(sizes, steps, strict=True))


def _word(what: str, spec: Param, value: float) -> int:
    """The 32 bits that hold a parameter; f32 is rounded to, never overflowed to infinity."""
    if spec.kind == "u32":
        if value != int(value) or not spec.low <= value <= spec.high:
            raise UsageError(f"{what} = {value} was asked for; {spec.low} to {spec.high} is allowed")
        return int(value)
    try:
        return struct.unpack("<I", struct.pack("<f", value))[0]
    except OverflowError:
        raise UsageError(f"{what} = {value} was asked for; it does not fit an f32") from None
