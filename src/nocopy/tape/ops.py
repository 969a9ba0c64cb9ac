"""The op table: the one place that says which ops there are and what their operands look like.

The validator, the builder, the C header, the shader header and docs/tape.md are all derived from `OPS`.
`tape/reference.py` gives each op its meaning; the players under `kernels/` agree with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod

from nocopy.memory.dtype import ALL, FLOATS, QUANTISED, DType

Dims = Mapping[str, int]
I32 = frozenset({DType.I32})
F32 = frozenset({DType.F32})
WEIGHTS = FLOATS | QUANTISED
CACHE = FLOATS | {DType.Q8_0}


@dataclass(frozen=True)
class Operand:
    """One operand: its role, its axes as names of dims, the dtypes that it may have.

    `blocks` names the axis along which block types (Q8_0 and the like) lie: its stride is then 1, its size
    and every other stride a multiple of the block.
    """

    name: str
    axes: tuple[str, ...]
    dtypes: frozenset[DType]
    out: bool = False
    optional: bool = False
    blocks: str = ""


@dataclass(frozen=True)
class Param:
    """One scalar parameter. `kind` is "f32" or "u32"; u32 values lie in [low, high]."""

    name: str
    kind: str = "f32"
    low: int = 0
    high: int = 2**32 - 1


@dataclass(frozen=True)
class Op:
    """One op.

    `formula` is its meaning in one line. `elementwise` ops may write over an input that has the same
    layout. `work` counts the elements or multiply-adds it touches, which bounds what a tape may cost.
    `check` returns what is wrong with the dims and params beyond the generic rules, or "".
    `nonzero` names dims that must not be 0.
    """

    name: str
    code: int
    formula: str
    dims: tuple[str, ...]
    operands: tuple[Operand, ...]
    params: tuple[Param, ...] = ()
    functions: tuple[str, ...] = ()
    elementwise: bool = False
    nonzero: tuple[str, ...] = ()
    work: Callable[[Dims], int] = field(default=lambda d: prod(d.values()))
    check: Callable[[Dims, Mapping[str, float]], str] = field(default=lambda _d, _p: "")

    @property
    def outputs(self) -> tuple[Operand, ...]:
        """The operands that are written."""
        return tuple(o for o in self.operands if o.out)


GRID = ("d0", "d1", "d2", "d3")
ROWS = ("d0", "d1", "d2")
BATCH = ("b0", "b1")
LAST = (*ROWS, "n")
HEADS = ("r", "h", "n")

UNARY = (
    "neg", "abs", "sign", "square", "sqrt", "rsqrt", "reciprocal", "exp", "log", "sin", "cos",
    "tanh", "sigmoid", "relu", "gelu", "gelu_tanh", "silu", "floor", "ceil", "round",
)  # fmt: skip
BINARY = ("add", "sub", "mul", "div", "min", "max", "pow", "eq", "lt", "le")
REDUCE = ("sum", "mean", "max", "min")
ROPE = ("half", "interleaved")
GLU = ("silu", "gelu", "gelu_tanh")

PENALTIES = ("shrink", "grow", "frequency", "presence")
"""The f32 numbers of `options` of penalize; see `reference_sample.penalize`."""
CHOICE = ("steepness", "top_p", "min_p")
"""The f32 numbers of `options` of sample: steepness is log2(e) / temperature, and 0 for the likeliest."""
DRAW = ("top_k", "seed_low", "seed_high", "draw_low", "draw_high")
"""The i32 numbers of `state` of sample: the seed and the number of the draw are 64 bits each."""
MAX_SAMPLED = 2**21
"""Elements of a row that sample chooses from: their weights, at most 2**40 each, sum to less than 2**62."""
MAX_RECENT = 4096
"""Tokens that penalize counts: it compares each with all others."""
EXP2 = (1073741824, 744261114, 257941162, 59596389, 10324635, 1425708, 158122, 11619)
"""2**-x for x in [0, 1) is the sum of EXP2[i] (-x)**i / 2**30, to 7e-9: through 8 Chebyshev points."""


def _check_topk(d: Dims, _p: Mapping[str, float]) -> str:
    return f"k = {d['k']} of n = {d['n']} values; k must be <= n" if d["k"] > d["n"] else ""


def _check_reduce(d: Dims, p: Mapping[str, float]) -> str:
    if d["n"] == 0 and p["function"] != REDUCE.index("sum"):
        return "only a sum has a value over n = 0 elements"
    return ""


def _check_conv(d: Dims, _p: Mapping[str, float]) -> str:
    if d["c"] % d["cg"]:
        return f"c = {d['c']} input channels do not divide into groups of cg = {d['cg']}"
    groups = d["c"] // d["cg"]
    if groups == 0 or d["o"] % groups:
        return f"o = {d['o']} output channels do not divide into {groups} groups"
    return ""


def _check_rope(d: Dims, _p: Mapping[str, float]) -> str:
    return f"f = {d['f']} pairs do not fit a head of n = {d['n']}" if 2 * d["f"] > d["n"] else ""


def _check_attention(d: Dims, _p: Mapping[str, float]) -> str:
    return f"h = {d['h']} heads do not divide among g = {d['g']} groups" if d["h"] % d["g"] else ""


def _check_penalize(d: Dims, _p: Mapping[str, float]) -> str:
    if d["o"] != len(PENALTIES):
        return f"o = {d['o']} options; there are {len(PENALTIES)}: {', '.join(PENALTIES)}"
    return f"w = {d['w']} recent tokens; at most {MAX_RECENT} are counted" if d["w"] > MAX_RECENT else ""


def _check_sample(d: Dims, _p: Mapping[str, float]) -> str:
    if d["o"] != len(CHOICE) or d["s"] != len(DRAW):
        numbers = f"{len(CHOICE)} ({', '.join(CHOICE)}) and {len(DRAW)} ({', '.join(DRAW)})"
        return f"o = {d['o']} options and s = {d['s']} words of state; there are {numbers}"
    return f"n = {d['n']} scores; at most {MAX_SAMPLED} are sampled" if d["n"] > MAX_SAMPLED else ""


def _conv_work(d: Dims) -> int:
    return prod(d[k] for k in ("n", "o", "oh", "ow", "cg", "kh", "kw"))


def _out(name: str, axes: tuple[str, ...], dtypes: frozenset[DType] = FLOATS) -> Operand:
    return Operand(name, axes, dtypes, out=True)


def _in(name: str, axes: tuple[str, ...], dtypes: frozenset[DType] = FLOATS) -> Operand:
    return Operand(name, axes, dtypes)


def _blocks(name: str, axes: tuple[str, ...], dtypes: frozenset[DType], along: str) -> Operand:
    return Operand(name, axes, dtypes, blocks=along)


def _opt(name: str, axes: tuple[str, ...]) -> Operand:
    return Operand(name, axes, FLOATS, optional=True)


OPS: tuple[Op, ...] = (
    Op("copy", 1, "out = convert(x); to an integer: round half to even, saturate, NaN becomes 0", GRID,
       (_out("out", GRID, ALL), _in("x", GRID, ALL)), elementwise=True),
    Op("fill", 2, "out = convert(value)", GRID, (_out("out", GRID, ALL),), (Param("value"),)),
    Op("unary", 3, "out = function(x), computed in f32", GRID,
       (_out("out", GRID), _in("x", GRID)), functions=UNARY, elementwise=True),
    Op("clamp", 4, "out = min(max(x, low), high), computed in f32; NaN stays NaN", GRID,
       (_out("out", GRID), _in("x", GRID)), (Param("low"), Param("high")), elementwise=True),
    Op("binary", 5, "out = function(a, b), in f32; eq, lt, le give 1 or 0; min and max pass NaN on", GRID,
       (_out("out", GRID), _in("a", GRID), _in("b", GRID)), functions=BINARY, elementwise=True),
    Op("matmul", 6, "out[b0,b1,m,n] = scale * sum_k a[b0,b1,m,k] b[b0,b1,k,n], summed in f32",
       (*BATCH, "m", "n", "k"),
       (_out("out", (*BATCH, "m", "n")), _in("a", (*BATCH, "m", "k")),
        _blocks("b", (*BATCH, "k", "n"), WEIGHTS, "k")),
       (Param("scale"),)),
    Op("reduce", 7, "out[d0,d1,d2] = function over n of x[d0,d1,d2,n], in f32; max and min pass NaN on", LAST,
       (_out("out", ROWS), _in("x", LAST)), functions=REDUCE, check=_check_reduce),
    Op("softmax", 8, "out = exp(scale x - max) / sum over n of the same", LAST,
       (_out("out", LAST), _in("x", LAST)), (Param("scale"),), elementwise=True),
    Op("rmsnorm", 9, "out = x / sqrt(mean over n of x^2 + eps) * weight", LAST,
       (_out("out", LAST), _in("x", LAST), _opt("weight", ("n",))), (Param("eps"),), elementwise=True),
    Op("layernorm", 10, "out = (x - mean) / sqrt(variance + eps) * weight + bias, over n", LAST,
       (_out("out", LAST), _in("x", LAST), _opt("weight", ("n",)), _opt("bias", ("n",))),
       (Param("eps"),), elementwise=True),
    Op("gather", 11, "out[r,w] = table[clamp(indices[r], 0, t-1), w]", ("r", "w", "t"),
       (_out("out", ("r", "w")), _blocks("table", ("t", "w"), WEIGHTS, "w"), _in("indices", ("r",), I32)),
       nonzero=("t",), work=lambda d: d["r"] * d["w"]),
    Op("argmax", 12, "out[d0,d1,d2] = lowest n where x is largest; NaN counts as -infinity", LAST,
       (_out("out", ROWS, I32), _in("x", LAST)), nonzero=("n",)),
    Op("topk", 13, "the k largest over n, in falling order, ties by lowest index; NaN counts as -infinity",
       (*LAST, "k"),
       (_out("values", (*ROWS, "k")), _out("indices", (*ROWS, "k"), I32), _in("x", LAST)), check=_check_topk),
    Op("conv2d", 14, "out[n,o,y,x] = bias[o] + sum over cg,kh,kw of weight * input; outside the input is 0",
       ("n", "c", "h", "w", "o", "cg", "kh", "kw", "oh", "ow"),
       (_out("out", ("n", "o", "oh", "ow")), _in("x", ("n", "c", "h", "w")),
        _in("weight", ("o", "cg", "kh", "kw")), _opt("bias", ("o",))),
       (Param("stride_y", "u32", 1, 65535), Param("stride_x", "u32", 1, 65535),
        Param("pad_y", "u32", 0, 65535), Param("pad_x", "u32", 0, 65535),
        Param("dilation_y", "u32", 1, 65535), Param("dilation_x", "u32", 1, 65535)),
       nonzero=("cg",), work=_conv_work, check=_check_conv),
    Op("resize", 15, "bilinear, half-pixel centres, edges repeated",
       ("n", "c", "h", "w", "oh", "ow"),
       (_out("out", ("n", "c", "oh", "ow")), _in("x", ("n", "c", "h", "w"))),
       nonzero=("h", "w"), work=lambda d: 4 * prod(d[k] for k in ("n", "c", "oh", "ow"))),
    Op("rope", 16, "rotate pairs (x[i], x[i+f]) (half) or (x[2i], x[2i+1]) by position * frequencies[i]",
       ("r", "h", "n", "f"),
       (_out("out", HEADS), _in("x", HEADS), _in("frequencies", ("f",), F32), _in("positions", ("r",), I32)),
       (Param("scale"),), functions=ROPE, elementwise=True, check=_check_rope),
    Op("scatter", 17, "out[indices[r], w] = convert(x[r, w]); an index outside 0 to t-1 writes nothing",
       ("r", "w", "t"),
       (Operand("out", ("t", "w"), CACHE, out=True, blocks="w"), _in("x", ("r", "w")),
        _in("indices", ("r",), I32)),
       work=lambda d: d["r"] * d["w"]),
    Op("attention", 18, "out[r,h] = softmax over t <= last[r] of (scale q[r,h] . k[t,g]) times v[t,g]",
       ("r", "h", "n", "t", "g"),
       (_out("out", HEADS), _in("q", HEADS), _blocks("k", ("t", "g", "n"), CACHE, "n"),
        _blocks("v", ("t", "g", "n"), CACHE, "n"), _in("last", ("r",), I32)),
       (Param("scale"), Param("softcap"), Param("window", "u32", 0, 2**31 - 1)), nonzero=("g",),
       work=lambda d: 2 * prod(d[k] for k in ("r", "h", "n", "t")), check=_check_attention),
    Op("glu", 19, "out = function(a) * b, in f32", GRID,
       (_out("out", GRID), _in("a", GRID), _in("b", GRID)), functions=GLU, elementwise=True),
    Op("penalize", 20, "out = x; where a token is among recent: x shrunk or grown, less what its count costs",
       ("r", "n", "w", "o"),
       (_out("out", ("r", "n")), _in("x", ("r", "n")), _in("recent", ("r", "w"), I32),
        _in("options", ("r", "o"), F32)),
       work=lambda d: d["r"] * (d["n"] + d["w"] ** 2), check=_check_penalize),
    Op("sample", 21, "out[r] = an n drawn by 2^(steepness x) among top_k, top_p, min_p; -1 if none can be",
       ("r", "n", "o", "s"),
       (_out("out", ("r",), I32), _in("x", ("r", "n")), _in("options", ("r", "o"), F32),
        _in("state", ("r", "s"), I32)),
       (Param("ahead", "u32", 0, 2**31 - 1),), nonzero=("n",), work=lambda d: 16 * d["r"] * d["n"],
       check=_check_sample),
)  # fmt: skip

BY_CODE: dict[int, Op] = {op.code: op for op in OPS}
BY_NAME: dict[str, Op] = {op.name: op for op in OPS}
