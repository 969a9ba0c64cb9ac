"""The builder: NumPy's broadcasting rules, and errors that name the op and the argument."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

from nocopy.errors import TapeError, UsageError
from nocopy.memory.dtype import DType
from nocopy.tape import OPS, RECORD, Space, TapeBuilder, Tensor, reference

F32, I32 = DType.F32, DType.I32
SIZES = {Space.GUEST: 1 << 16}


def tensor(shape, offset=0, dtype=F32, strides=()):
    return Tensor(Space.GUEST, offset, tuple(shape), dtype, strides)


def records(builder):
    return np.frombuffer(bytes(builder), RECORD)


shapes = st.lists(st.sampled_from([0, 1, 1, 2, 3]), max_size=4).map(tuple)


@given(shapes, shapes)
def test_binary_broadcasts_as_numpy_does(a, b):
    builder = TapeBuilder()
    try:
        out = np.broadcast_shapes(a, b)
    except ValueError:
        # No output fits both: each candidate is refused, and nothing is recorded.
        for shape in (a, b):
            with pytest.raises(UsageError, match=r"binary: [ab] has shape"):
                builder.binary("add", tensor(shape), tensor(a, 4096), tensor(b, 8192))
        assert len(builder) == 0
        return
    builder.binary("add", tensor(out), tensor(a, 4096), tensor(b, 8192))
    tape = builder.build(SIZES)
    memory = np.arange(1 << 14, dtype=np.float32)
    spaces = {Space.GUEST: memory.view(np.uint8)}
    x = memory[1024:][: int(np.prod(a))].reshape(a).copy()
    y = memory[2048:][: int(np.prod(b))].reshape(b).copy()
    reference.play(tape, spaces)
    np.testing.assert_array_equal(memory[: int(np.prod(out))].reshape(out), x + y)


@given(shapes, shapes)
def test_copy_accepts_exactly_what_numpy_broadcasts_to_the_output(out, x):
    try:
        np.broadcast_to(np.zeros(x), out)
        fits = len(x) <= len(out)
    except ValueError:
        fits = False
    # Leading axes of one are harmless; NumPy's broadcast_to refuses them, its assignment accepts them.
    extra = max(0, len(x) - len(out))
    if extra and set(x[:extra]) == {1}:
        fits = all(n in (1, m) for n, m in zip(x[extra:], out, strict=True))
    builder = TapeBuilder()
    if fits:
        builder.copy(tensor(out), tensor(x, 4096))
        builder.build(SIZES)
    else:
        with pytest.raises(UsageError, match="copy: x has shape"):
            builder.copy(tensor(out), tensor(x, 4096))


@given(st.data())
def test_strides_in_the_record_address_the_same_elements_as_numpys_view(data):
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    base = np.arange(int(np.prod(shape)) * 2).reshape(*shape, 2)[..., 0]
    view = base.transpose(data.draw(st.permutations(range(len(shape)))))
    steps = tuple(s // base.itemsize for s in view.strides)
    builder = TapeBuilder()
    builder.copy(tensor(view.shape), tensor(view.shape, 4096, F32, steps))
    record = records(builder)[0]
    dims, strides = record["dims"][:4], record["operands"][1]["strides"]
    flat = np.arange(base.size * 2)
    seen = as_strided(flat, tuple(map(int, dims)), tuple(int(s) * flat.itemsize for s in strides))
    np.testing.assert_array_equal(seen.reshape(view.shape), view)


def call(method, *args, **kwargs):
    getattr(TapeBuilder(), method)(*args, **kwargs)


T = tensor


@pytest.mark.parametrize(
    ("method", "args", "says"),
    [
        ("unary", ("exq", T((2,)), T((2,))), "unary: function 'exq' was asked for; there are neg, abs"),
        ("binary", ("plus", T((2,)), T((2,)), T((2,))), "binary: function 'plus'"),
        ("reduce", ("prod", T(()), T((2,))), "reduce: function 'prod'"),
        ("copy", (T((2, 3)), T((2, 4))), "copy: x has shape (2, 4); it does not broadcast to (1, 1, 2, 3)"),
        ("matmul", (T((2, 2)), T((2, 3)), T((4, 2))), "matmul: out (2, 2) = a (2, 3) @ b (4, 2)"),
        ("matmul", (T((3, 2)), T((2, 3)), T((3, 2))), "does not fit together"),
        ("matmul", (T((2,)), T((2, 3)), T((3, 2))), "matmul: out has shape (2,); two to four axes"),
        ("matmul", (T((2, 2)), T((3,)), T((3, 2))), "matmul: a has shape (3,)"),
        ("matmul", (T((5, 2, 2)), T((4, 2, 3)), T((3, 2))), "matmul: a has shape (4, 2, 3)"),
        ("reduce", ("sum", T((3,)), T((2, 4))), "reduce: out has shape (3,)"),
        ("reduce", ("sum", T((1,)), T((2, 4))), "reduce: out has shape (1,); (1, 1, 2) is needed"),
        ("reduce", ("sum", T(()), T(())), "x has no axes"),
        ("softmax", (T((1, 4)), T((2, 4))), "softmax: out has shape (1, 4); (1, 1, 2, 4) is needed"),
        ("rmsnorm", (T((2, 4)), T((2, 4)), T((3,))), "rmsnorm: weight has shape (3,)"),
        ("rmsnorm", (T((2, 4)), T((2, 4)), T((2, 4))), "rmsnorm: weight has shape (2, 4)"),
        ("layernorm", (T((2, 4)), T((2, 4)), None, T((2,))), "layernorm: bias has shape (2,)"),
        ("gather", (T((2, 4)), T((4,)), T((2,), 0, I32)), "gather: table (4,) needs two axes"),
        ("gather", (T((2, 4)), T((3, 5)), T((2,), 0, I32)), "gather: out has shape (2, 4); (2, 5) is needed"),
        ("argmax", (T((3,), 0, I32), T((2, 4))), "argmax: out has shape (3,)"),
        ("topk", (T(()), T((), 0, I32), T((4,))), "topk: values has no axis"),
        ("topk", (T((2, 3)), T((2, 2), 0, I32), T((2, 4))), "topk: indices has shape (2, 2)"),
        ("conv2d", (T((1, 1, 2, 2)), T((1, 2, 2)), T((1, 1, 1, 1))), "conv2d: x has shape (1, 2, 2); four"),
        ("conv2d", (T((2, 1, 2, 2)), T((1, 1, 2, 2)), T((1, 1, 1, 1))), "conv2d: out has shape (2, 1, 2, 2)"),
        ("resize", (T((2, 2)), T((1, 1, 2, 2))), "resize: x (1, 1, 2, 2) and out (2, 2) need four axes"),
        ("resize", (T((1, 2, 2, 2)), T((1, 1, 2, 2))), "resize: out has shape"),
        ("fill", (T((2,)), 1e300), "fill: value = 1e+300 was asked for; it does not fit an f32"),
        ("fill", (T((2**31,)), 0.0), "fill: dims (1, 1, 1, 2147483648)"),
        ("copy", (T((2,), -4), T((2,))), "copy: out starts at byte -4"),
        ("copy", (T((2,)), T((2,), 2**64)), "copy: x starts at byte 18446744073709551616"),
        ("copy", (T((2,)), T((2,), 8, F32, (-1,))), "copy: x starts at byte 8 and has strides (-1,)"),
        ("copy", (T((2,)), T((2,), 8, F32, (2**32,))), "copy: x starts at byte 8 and has strides"),
    ],
)
def test_a_mistake_is_named_when_it_is_made(method, args, says):
    with pytest.raises(UsageError) as caught:
        call(method, *args)
    assert says in str(caught.value)


class Deep:
    """A tensor of five axes, as a view of an array may be."""

    space, offset, dtype = Space.GUEST, 0, F32
    shape, strides = (2, 1, 1, 1, 3), (3, 3, 3, 3, 1)


@pytest.mark.parametrize(("method", "args"), [("fill", (Deep, 0.0)), ("softmax", (Deep, Deep))])
def test_more_than_four_axes_are_refused(method, args):
    with pytest.raises(UsageError, match="at most 4 axes"):
        call(method, *args)


@pytest.mark.parametrize(
    ("option", "value"),
    [("stride", (0, 1)), ("stride", (1, 65536)), ("pad", (-1, 0)), ("pad", (0, 65536)), ("dilation", (1, 0))],
)
def test_conv_options_out_of_range_are_named(option, value):
    with pytest.raises(UsageError, match=f"conv2d: {option}_[yx] = "):
        call("conv2d", T((1, 1, 2, 2)), T((1, 1, 2, 2)), T((1, 1, 1, 1)), **{option: value})


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 0.1])
def test_f32_parameters_are_rounded_and_may_be_special(value):
    builder = TapeBuilder()
    builder.fill(tensor((1,)), value)
    word = records(builder)[0]["params"][:1].view(np.float32)[0]
    np.testing.assert_equal(word, np.float32(value))


def test_bytes_of_several_ops_are_in_order():
    builder = TapeBuilder()
    builder.fill(tensor((4,)), 1.0)
    builder.unary("exp", tensor((4,), 64), tensor((4,)))
    assert len(builder) == 2
    assert [op.name for op in builder.build(SIZES).ops()] == ["fill", "unary"]


def test_build_refuses_what_does_not_fit_its_space():
    builder = TapeBuilder()
    builder.fill(tensor((4,), 8), 1.0)
    builder.build({Space.GUEST: 24})
    with pytest.raises(TapeError, match="ends at byte 24 of space guest, which has 23"):
        builder.build({Space.GUEST: 23})


def test_there_is_a_method_for_every_op_and_no_other():
    methods = {name for name in vars(TapeBuilder) if not name.startswith("_")} - {"build"}
    assert methods == {op.name for op in OPS}
