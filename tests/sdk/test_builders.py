"""The C builders write the very bytes that `TapeBuilder` writes, and refuse what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nocopy.errors import MemoryLimitError, UsageError
from nocopy.memory.dtype import DType
from nocopy.tape import OPS, TapeBuilder
from nocopy.tape.ops import BY_NAME, Op, Param
from nocopy.tape.record import Space, Tensor, contiguous_strides
from tests.sdk.driver import INVALID, Driver

RELAXED = settings(
    max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

sizes = st.sampled_from([0, 1, 1, 2, 2, 3, 3, 5, 70000, 2**31 - 1, 2**31])


@st.composite
def tensors(draw: st.DrawFn, shape: tuple[int, ...]) -> Tensor:
    """A tensor whose shape is `shape`, or that with axes missing, of size 1, or just wrong."""
    change = draw(st.sampled_from(["none", "none", "none", "drop", "one", "lead", "wrong"]))
    if change == "drop" and shape:
        shape = shape[draw(st.integers(1, len(shape))) :]
    elif change == "one":
        shape = tuple(draw(st.sampled_from([1, size])) for size in shape)
    elif change == "lead" and len(shape) < 4:
        shape = (draw(st.sampled_from([1, 2])), *shape)
    elif change == "wrong":
        shape = tuple(draw(st.lists(sizes, max_size=4)))
    natural = contiguous_strides(shape)
    fits = max(natural, default=0) < 2**32
    strides = (
        natural if fits and draw(st.booleans()) else tuple(draw(st.integers(0, 2**32 - 1)) for _ in shape)
    )
    offset = draw(st.integers(0, 2**40))
    return Tensor(
        draw(st.sampled_from(Space)), offset, shape, draw(st.sampled_from(list(DType)[1:])), strides
    )


def parameters(spec: Param) -> st.SearchStrategy[float]:
    """A value that a record can hold, mostly one that the op allows."""
    if spec.kind == "f32":
        return st.floats(width=32)
    return st.one_of(st.integers(spec.low, min(spec.high, 9)), st.integers(0, 2**32 - 1))


@st.composite
def calls(draw: st.DrawFn) -> tuple[Op, list[Tensor | None], list[float], int]:
    """Arguments for any builder, mostly ones that fit together."""
    op = draw(st.sampled_from(OPS))
    dims = {name: draw(sizes) for name in op.dims}
    operands: list[Tensor | None] = []
    for spec in op.operands:
        absent = spec.optional and draw(st.booleans())
        operands.append(None if absent else draw(tensors(tuple(dims[a] for a in spec.axes))))
    params = [draw(parameters(p)) for p in op.params]
    return op, operands, params, draw(st.integers(0, max(0, len(op.functions) - 1)))


def in_python(
    tape: TapeBuilder, op: Op, operands: list[Tensor | None], params: list[float], function: int
) -> None:
    """Call the same builder of `TapeBuilder`."""
    arguments: list[Any] = [op.functions[function]] if op.functions else []
    if op.name == "conv2d":
        sy, sx, py, px, dy, dx = (int(p) for p in params)
        tape.conv2d(*operands, stride=(sy, sx), pad=(py, px), dilation=(dy, dx))  # type: ignore[arg-type]
    elif op.name == "rope":
        tape.rope(*operands, interleaved=bool(function), scale=params[0])  # type: ignore[arg-type]
    elif op.name == "sample":
        tape.sample(*operands, ahead=int(params[0]))  # type: ignore[arg-type]
    elif op.name == "attention":
        scale, softcap, window = params
        tape.attention(*operands, scale=scale, softcap=softcap, window=int(window))  # type: ignore[arg-type]
    else:
        getattr(tape, op.name)(*arguments, *operands, *params)


@RELAXED
@given(call=calls())
def test_every_builder_agrees_with_python(
    driver: Driver, call: tuple[Op, list[Tensor | None], list[float], int]
) -> None:
    op, operands, params, function = call
    driver.begin()
    got = driver.build(op, operands, params, function)
    tape = TapeBuilder()
    try:
        in_python(tape, op, operands, params, function)
    except UsageError:
        assert got == UsageError.code
        assert driver.records() == b""
        assert driver.what().startswith(f"{op.name}: ")
    else:
        assert got == 0, driver.what()
        assert driver.records() == bytes(tape)


FITTING = {"rope": {"f": 1}, "penalize": {"o": 4}, "sample": {"o": 3, "s": 5}}
"""Sizes that are not 2: two elements are one pair, and options are so many."""


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_every_op_and_function_builds(driver: Driver, op: Op) -> None:
    """Shapes that fit, so that the property test cannot pass by refusing everything."""
    dims = dict.fromkeys(op.dims, 2) | FITTING.get(op.name, {})
    operands: list[Tensor | None] = [
        Tensor(Space.GUEST, 64 * i, tuple(dims[a] for a in o.axes), min(o.dtypes))
        for i, o in enumerate(op.operands)
    ]
    params: list[float] = [1] * len(op.params)
    for function in range(max(1, len(op.functions))):
        driver.begin()
        tape = TapeBuilder()
        assert driver.build(op, operands, params, function) == 0
        in_python(tape, op, operands, params, function)
        assert driver.records() == bytes(tape)
        assert len(tape.build({Space.GUEST: 65536})) == 1


@pytest.mark.parametrize("op", [op for op in OPS if op.functions], ids=lambda op: op.name)
def test_unknown_function_is_refused(driver: Driver, op: Op) -> None:
    operands: list[Tensor | None] = [Tensor(Space.GUEST, 0, (2,), DType.F32)] * len(op.operands)
    driver.begin()
    assert driver.build(op, operands, [1] * len(op.params), len(op.functions)) == UsageError.code
    assert driver.records() == b""


def test_full_tape_is_an_error_and_stays_one(driver: Driver) -> None:
    fill, x = BY_NAME["fill"], Tensor(Space.GUEST, 0, (2,), DType.F32)
    driver.begin(2)
    assert [driver.build(fill, [x], [1.0]) for _ in range(4)] == [
        0,
        0,
        MemoryLimitError.code,
        MemoryLimitError.code,
    ]
    assert len(driver.records()) == 2 * 256
    assert driver.what() == "the tape's array of records is full"


def test_first_error_stays(driver: Driver) -> None:
    fill, gather, x = BY_NAME["fill"], BY_NAME["gather"], Tensor(Space.GUEST, 0, (2,), DType.F32)
    driver.begin()
    assert driver.build(fill, [x], [1.0]) == 0
    assert driver.build(gather, [x, x, x], []) == UsageError.code
    assert driver.build(fill, [x], [1.0]) == UsageError.code
    assert driver.what() == "gather: table needs 2 axes"
    assert len(driver.records()) == 256


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_invalid_tensor_is_refused(driver: Driver, op: Op) -> None:
    fits: list[Tensor | None] = [Tensor(Space.GUEST, 0, (2,) * len(o.axes), DType.F32) for o in op.operands]
    for slot in range(len(op.operands)):
        driver.begin()
        operands: list[Tensor | bytes | None] = [*fits[:slot], INVALID, *fits[slot + 1 :]]
        assert driver.build(op, operands, [1] * len(op.params)) == UsageError.code
