"""How far a player's result may lie from the exact one: the only place that says so.

U is the unit roundoff of f32, in which players compute. A result is rounded once more, to the output's dtype;
`truth.expected` takes care of that. What a player may do:
    - round each f32 operation, with a small constant factor (ROUNDINGS) for functions that the GPU
      interfaces specify in ulps (division 2.5 ulp, exp 3 + 2|x| ulp in Vulkan's precision table);
    - see its argument with a relative error of the same size, which matters where a function is steep;
    - add up n terms in any order: an error below n U by worst case, of the order sqrt(n) U for
      rounding errors that do not conspire (Higham and Mary, 2019), with the factor 8 for confidence;
    - take f32 subnormals for zero.
Infinity as a tolerance means: not specified (an intermediate result leaves the range of f32).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

U = 2.0**-24
TINY = 2.0**-126
ROUNDINGS = 8
HUGE = 2.0**126
HELD = 2.0**-16
"""Beside weights in blocks a player may hold each 32 values of `a` as integers of 16 bits with one scale."""

EXACT = {"neg", "abs", "sign", "relu", "floor", "ceil", "round", "min", "max", "eq", "lt", "le"}
ONCE = {"add", "sub", "mul", "square"}
"""Functions that IEEE 754 rounds once; everywhere."""


def growth(n: int) -> float:
    """Error of a sum of n terms, in units of U times the sum of their magnitudes."""
    return min(n, 8 * np.sqrt(n)) + 2


def tolerance(op: str, x: dict[str, Any], y: F64, p: dict[str, Any], amplitude: Any) -> Any:
    """The largest allowed |result - y| before the result is rounded to the output's dtype.

    Args:
        op: name of the op.
        x: its inputs in float64.
        y: its exact output.
        p: its parameters.
        amplitude: the op's formula, for sums of products; taken over magnitudes it bounds the error.
            For glu, the formula of its gate.
    """
    size = {name: np.abs(v) for name, v in x.items()}
    match op:
        case "copy" | "fill" | "gather" | "argmax" | "topk" | "sample":
            error = 0.0
        case "clamp":
            error = np.inf if np.isnan([p["low"], p["high"]]).any() else TINY
        case "unary" | "binary":
            error = function_tolerance(p["function"], x, y)
        case "matmul" | "conv2d":
            terms = x["a"].shape[-1] if op == "matmul" else int(np.prod(x["weight"].shape[1:])) + 1
            total, scale = amplitude(size, p | {"scale": 1.0}, y.shape), abs(p.get("scale", 1.0))
            # A player may skip the weights that lie outside the image, or multiply them by 0.
            finite = {name: np.where(np.isfinite(v), v, 0) for name, v in size.items()}
            # Terms that are infinite leave the others to overflow against them: NaN is right then too.
            summed = amplitude(finite, p | {"scale": 1.0}, y.shape) if not np.isfinite(total).all() else total
            free = _overflows(summed) | (op == "conv2d" and not np.isfinite(x["weight"]).all())
            error = scale * (growth(terms) * U * total + TINY * terms) + TINY
            if p.get("blocks"):
                held = {"a": _largest_of_runs(size["a"]), "b": size["b"]}
                error = error + scale * HELD * amplitude(held, p | {"scale": 1.0}, y.shape)
            error = np.where(free, np.inf, error)
        case "reduce":
            error = _reduce_tolerance(p["function"], size["x"])
        case "softmax":
            n, z = x["x"].shape[-1], np.abs(p["scale"] * x["x"])
            finite = np.where(np.isfinite(z), z, 0)
            top = finite.max(-1, keepdims=True, initial=0)
            steep = finite + top
            error = U * np.abs(y) * (growth(n) + ROUNDINGS * (1 + steep)) + TINY
            error = np.where(_overflows(top), np.inf, error)
        case "rmsnorm":
            error = U * np.abs(y) * (growth(x["x"].shape[-1]) + ROUNDINGS) + TINY
            error = error + TINY * size.get("weight", 0.0)  # the quotient before may be subnormal
            error = np.where(_squares_overflow(x["x"], p["eps"]), np.inf, error)
        case "layernorm":
            error = _layernorm_tolerance(x, y, p)
        case "resize":
            # The position in the input is off by some U times its size, and the value accordingly.
            pixels = sum(x["x"].shape[2:]) + 4
            error = ROUNDINGS * U * pixels * size["x"].max(initial=0) + TINY
            error = error if np.isfinite(x["x"]).all() else np.inf
        case "rope":
            error = _rope_tolerance(x, y, p)
        case _:
            error = OTHERS[op](x, y, p, amplitude)
    return error


def rope_pairs(function: str, f: int) -> tuple[slice, slice]:
    """Where the first and the second elements of rope's pairs lie in a head."""
    if function == "interleaved":
        return slice(0, 2 * f, 2), slice(1, 2 * f, 2)
    return slice(f), slice(f, 2 * f)


def rows_that_see(last: F64, tokens: int, window: int) -> Iterator[tuple[Any, range]]:
    """Attention's rows by the tokens that they see: a mask, and the tokens. Without those that see none."""
    for each in np.unique(last):
        stop = min(int(each) + 1, tokens)
        seen = range(max(0, stop - window) if window else 0, max(0, stop))
        if seen:
            yield last == each, seen


def _largest_of_runs(a: F64) -> F64:
    """For each element of the last axis, the largest of its 32."""
    runs = a.reshape(*a.shape[:-1], -1, 32) if a.size else a
    return np.broadcast_to(runs.max(-1, keepdims=True), runs.shape).reshape(a.shape) if a.size else a


def _rope_tolerance(x: dict[str, Any], y: F64, p: dict[str, Any]) -> Any:
    """The angle is a product in f32, so it is off by some U times itself; and the functions by some U."""
    error = np.full(y.shape, TINY)
    first, second = rope_pairs(p["function"], len(x["frequencies"]))
    angle = np.abs(x["positions"][:, None, None] * x["frequencies"])
    values = np.abs(x["x"][..., first]) + np.abs(x["x"][..., second])
    both = np.abs(p["scale"]) * values  # scale times a function may be subnormal
    slack = both * np.minimum(2.0, ROUNDINGS * U * (1 + angle)) + TINY * (2 + both + values)
    slack = np.where(np.isfinite(slack) & (angle < HUGE) & ~_overflows(both), slack, np.inf)
    error[..., first] = error[..., second] = slack
    return error


def _penalize_tolerance(x: dict[str, Any], y: F64, p: dict[str, Any], amplitude: Any) -> Any:
    """Three or four roundings where a token is recent; a copy elsewhere, where the amplitude is 0."""
    size = amplitude(x, p, y.shape)
    return np.where(size < HUGE, 4 * U * size + np.minimum(size, TINY), np.inf)


def _glu_tolerance(x: dict[str, Any], y: F64, p: dict[str, Any], amplitude: Any) -> Any:
    gate = amplitude(x, p, y.shape)
    slack = function_tolerance(p["function"], {"x": x["a"]}, gate)
    error = (slack + U * np.abs(gate)) * np.abs(x["b"]) + U * np.abs(y) + TINY
    # Infinity times what may or may not be 0 is not specified.
    return np.where(np.isfinite(x["b"]) | (np.abs(gate) > 2 * slack), error, np.inf)


def _attention_tolerance(x: dict[str, Any], y: F64, p: dict[str, Any], amplitude: Any) -> Any:
    """A score's error multiplies its weight; then a weighted mean of the values' magnitudes.

    Not specified: scores that overflow or are not finite, values that are not finite.
    """
    error, group = np.full(y.shape, TINY), y.shape[1] // x["k"].shape[1]
    cap, mean = abs(p["softcap"]), amplitude(x | {"v": np.abs(x["v"])}, p, y.shape)
    for rows, seen in rows_that_see(x["last"], len(x["k"]), p["window"]):
        for h in range(y.shape[1]):
            q, k = np.abs(x["q"][rows, None, h]), np.abs(x["k"][seen, h // group])
            v, n = np.abs(x["v"][seen, h // group]), y.shape[2]
            products = (k * q).sum(-1)
            total = abs(p["scale"]) * products
            off = U * (growth(n) + 2) * total + TINY * n + ROUNDINGS * U * np.minimum(total, cap or np.inf)
            off = off + TINY * (products + cap)
            top = 2 * off.max(-1) + ROUNDINGS * U * (1 + 2 * np.minimum(total.max(-1), 104.0))
            relative = np.expm1(np.minimum(top, 80.0)) + (growth(len(seen)) + ROUNDINGS) * U
            slack = relative[:, None] * mean[rows, h] + len(seen) * TINY * (1 + v.max(0)) + TINY
            reach = np.maximum(products.max(-1), total.max(-1))
            tame = (reach < HUGE) & (not 0 < cap < TINY) & np.isfinite(cap)
            known = np.isfinite(v).all(0) & (v.sum(0) < HUGE) & tame[:, None]
            error[rows, h] = np.where(known, slack, np.inf)
    return error


def _reduce_tolerance(function: str, size: F64) -> Any:
    n = max(1, size.shape[-1])
    if function in ("max", "min"):
        return TINY
    total = size.sum(-1)
    error = (growth(n) * U * total + TINY * n) / (n if function == "mean" else 1)
    # Terms that are infinite leave the others to overflow against them: NaN is right then too.
    return np.where(_overflows(np.where(np.isfinite(size), size, 0).sum(-1)), np.inf, error)


def function_tolerance(function: str, x: dict[str, F64], y: F64) -> Any:
    """For unary and binary functions."""
    if function in EXACT or function in ONCE:
        return U * np.abs(y) * (function in ONCE) + TINY
    if function == "pow":
        a, b = x["a"], x["b"]
        steep = np.abs(b * np.log(np.abs(a))) + np.abs(b)
        steep = np.where(np.isfinite(steep), steep, 0)
        return ROUNDINGS * U * np.abs(y) * (1 + steep) + TINY
    v = np.abs(x["x"] if "x" in x else x["a"])
    v = np.where(np.isfinite(v), v, 0)
    match function:
        case "exp" | "sigmoid" | "silu":
            scale = np.abs(y) * (1 + v)
        case "log":
            scale = np.abs(y) + 1
        case "sin" | "cos":
            scale = np.abs(y) + v
        case "tanh":
            scale = 2 * np.abs(y)
        case "gelu" | "gelu_tanh":
            scale = v  # 1 + erf(x) cancels for negative x
        case _:  # sqrt, rsqrt, reciprocal, div
            scale = np.abs(y)
    # x / (1 + exp(-x)) is 0 once exp(-x) is infinite, from x = -88.7 on.
    return ROUNDINGS * U * scale + (128 * TINY if function == "silu" else TINY)


def _layernorm_tolerance(x: dict[str, F64], y: F64, p: dict[str, Any]) -> Any:
    v, n = x["x"], max(1, x["x"].shape[-1])
    top = np.abs(v).max(-1, keepdims=True, initial=0)
    centred = v - v.sum(-1, keepdims=True) / n
    deviation = np.sqrt((centred * centred).sum(-1, keepdims=True) / n + p["eps"])
    # The mean is off by this much; so are the deviations from it, and the variance accordingly.
    shift = growth(n) * U * top
    relative = shift / deviation + (growth(n) + ROUNDINGS) * U
    error = shift / deviation + np.abs(centred) / deviation * relative
    weight, bias = np.abs(x.get("weight", 1.0)), np.abs(x.get("bias", 0.0))
    error = (error + TINY) * weight + 2 * U * (np.abs(y) + bias) + TINY
    return np.where(_squares_overflow(v, 1.0) | _squares_overflow(centred, p["eps"]), np.inf, error)


def _overflows(total: F64) -> Any:
    return np.isfinite(total) & (total > HUGE)


def _squares_overflow(v: F64, eps: float) -> Any:
    """The squares of a row leave the range of f32, at either end; or a negative eps cancels them."""
    finite = np.where(np.isfinite(v), v, 0)
    top = np.abs(finite).max(-1, keepdims=True, initial=0)
    return (top > 2.0**60) | (top * top + eps < 2.0**-100) | (eps < 0)


OTHERS = {"attention": _attention_tolerance, "glu": _glu_tolerance, "penalize": _penalize_tolerance}
