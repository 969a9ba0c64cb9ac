"""Each rule of the validator, one at a time, on a record that is right but for one field."""

from __future__ import annotations

import numpy as np
import pytest

from nocopy.errors import TapeError
from nocopy.memory.dtype import DType
from nocopy.tape import OPS, RECORD, Space, TapeBuilder, Tensor, validate
from nocopy.tape.validate import MAX_ELEMENTS, MAX_RECORDS

F32, F16, I32, U8 = DType.F32, DType.F16, DType.I32, DType.U8
SIZES = {Space.GUEST: 4096, Space.WEIGHTS: 1024}


def tensor(offset=0, shape=(4, 8), dtype=F32, strides=(), space=Space.GUEST):
    return Tensor(space, offset, shape, dtype, strides)


def taped(method, *args, **kwargs):
    """The one record that a builder's method makes, not validated."""
    builder = TapeBuilder()
    getattr(builder, method)(*args, **kwargs)
    return np.frombuffer(bytes(builder), RECORD).copy()


def addition():
    return taped("binary", "add", tensor(0), tensor(128), tensor(256))


def images(*shapes):
    """Tensors of these shapes, 256 bytes apart."""
    return tuple(tensor(256 * i, shape) for i, shape in enumerate(shapes))


def set_at(record, path, value):
    """Write one field: ("dims", 3) or ("operands", 1, "strides", 0)."""
    *way, last = path
    target = record[0]
    for step in way:
        target = target[step]
    target[last] = value
    return record


def refusal(records, sizes=SIZES, **options):
    with pytest.raises(TapeError) as caught:
        validate(records, sizes, **options)
    return str(caught.value)


def test_a_right_record_is_accepted_and_copied():
    records = addition()
    tape = validate(records, SIZES)
    records["opcode"] = 99
    assert tape.ops()[0].name == "binary"
    assert len(tape) == 1
    assert tape.sizes == {Space.GUEST: 384}
    assert tape.work == 32
    assert [(e.start, e.stop, e.written) for e in tape.extents[0]] == [
        (0, 128, True),
        (128, 256, False),
        (256, 384, False),
    ]
    assert not tape.records.flags.writeable


def test_bytes_that_the_caller_changes_later_do_not_reach_the_tape():
    raw = bytearray(addition().tobytes())
    tape = validate(raw, SIZES)
    raw[:] = bytes(len(raw))
    assert bytes(tape) == addition().tobytes()


def test_an_empty_tape_is_a_tape():
    tape = validate(b"", SIZES)
    assert (len(tape), tape.work, tape.sizes, tape.extents) == (0, 0, {}, ())


@pytest.mark.parametrize("size", [1, 255, 257, 511])
def test_a_tape_of_part_of_a_record_is_refused(size):
    assert "multiple of 256" in refusal(bytes(size))


def test_the_number_of_records_is_bounded():
    raw = addition().tobytes()
    with pytest.raises(TapeError, match="at most 65536") as caught:
        validate(raw * (MAX_RECORDS + 1), SIZES)
    assert caught.value.record == -1


def test_the_refused_record_is_named():
    good, bad = addition(), set_at(addition(), ("version",), 2)
    with pytest.raises(TapeError, match="record 2") as caught:
        validate(good.tobytes() * 2 + bad.tobytes(), SIZES)
    assert caught.value.record == 2


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("version",), 0, "version 0"),
        (("version",), 2, "version 2"),
        (("opcode",), 0, "opcode 0 is unknown"),
        (("opcode",), 99, "opcode 99 is unknown"),
        (("opcode",), 65535, "opcode 65535"),
        (("function",), 10, "function 10 is unknown; this op has 0 to 9"),
        (("reserved",), 1, "reserved field is 1"),
        (("dims", 4), 1, "dims past the first 4"),
        (("dims", 9), 1, "dims past the first 4"),
        (("dims", 0), 2**31, "dim d0 is 2147483648"),
        (("dims", 3), 2**32 - 1, "dim d3 is 4294967295"),
        (("params", 0), 1, "params past the first 0"),
        (("params", 11), 1, "params past the first 0"),
        (("operands", 0, "dtype"), 0, "operand out has dtype 0"),
        (("operands", 1, "dtype"), 4, "operand a has dtype 4; allowed are f32, f16, bf16"),
        (("operands", 2, "dtype"), 6, "operand b has dtype 6"),
        (("operands", 2, "dtype"), 65535, "operand b has dtype 65535"),
        (("operands", 1, "space"), 3, "operand a lies in space 3; this tape may use guest, weights"),
        (("operands", 1, "space"), 4, "lies in space 4"),
        (("operands", 1, "space"), 65535, "lies in space 65535"),
        (("operands", 1, "reserved"), 1, "operand a: the reserved field is 1"),
        (("operands", 1, "offset"), 130, "byte 130, which is not a multiple of 4"),
        (("operands", 3, "offset"), 4, "operand 3 is unused"),
        (("operands", 3, "dtype"), 1, "operand 3 is unused"),
        (("operands", 4, "space"), 1, "operand 4 is unused"),
        (("operands", 4, "reserved"), 1, "operand 4 is unused"),
        (("operands", 4, "strides", 3), 1, "operand 4 is unused"),
    ],
)
def test_one_wrong_field_is_refused_and_named(path, value, says):
    assert says in refusal(set_at(addition(), path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("operands", 2, "offset"), 4096 - 128 + 4),
        (("operands", 2, "offset"), 4096),
        (("operands", 2, "offset"), 2**63),
        (("operands", 2, "offset"), 2**64 - 4),
        (("operands", 2, "offset"), 2**64 - 128),
        (("operands", 2, "strides", 3), 2**31 - 1),
        (("operands", 2, "strides", 3), 2**32 - 1),
        (("operands", 2, "strides", 2), 2**32 - 1),
        (("operands", 2, "strides", 2), 2**30),  # times 4 bytes is 2**32
    ],
)
def test_an_element_past_the_end_is_refused_without_overflow(path, value):
    assert "operand b ends at byte" in refusal(set_at(addition(), path, value))


def test_the_last_byte_of_a_space_may_be_used_and_the_next_may_not():
    record = set_at(addition(), ("operands", 2, "offset"), 4096 - 128)
    assert validate(record, SIZES).sizes[Space.GUEST] == 4096
    assert "ends at byte 4096 of space guest, which has 4095" in refusal(record, {Space.GUEST: 4095})


def test_the_sum_of_all_strides_cannot_wrap_around():
    """Four axes of 2**31 - 1 with strides of 2**32 - 1 reach past 2**64; modulo 2**64 they would fit."""
    record = taped("reduce", "sum", tensor(0, (1,)), tensor(128, (1,)))
    record[0]["dims"][:4] = (1, 1, 2**16, 2**31 - 1)
    record[0]["operands"][0]["strides"][:] = (0, 0, 0, 0)
    record[0]["operands"][1]["strides"][:] = (2**32 - 1,) * 4
    assert "operand" in refusal(record, {Space.GUEST: 2**20})
    record = taped("copy", tensor(0, (1,)), tensor(128, (1,)))
    record[0]["dims"][:4] = (2**31 - 1,) * 4
    record[0]["operands"][1]["strides"][:] = (2**32 - 1,) * 4
    assert "elements are allowed" in refusal(record, {Space.GUEST: 2**64 - 1})


@pytest.mark.parametrize("dims", [(2**24, 2**24, 2, 0), (2**31 - 1, 2**31 - 1, 2**31 - 1, 0)])
def test_an_empty_axis_does_not_hide_axes_whose_product_overflows(dims):
    record = taped("softmax", tensor(0, (0,)), tensor(128, (0,)))
    record[0]["dims"][:4] = dims
    assert str(MAX_ELEMENTS) in refusal(record)


def test_an_empty_operand_needs_no_room_but_starts_inside_its_space():
    record = taped("copy", tensor(4096, (0, 3)), tensor(4096, (0, 3)))
    assert validate(record, SIZES).work == 0
    record[0]["operands"][1]["offset"] = 4100
    assert "operand x ends at byte 4100" in refusal(record)


def test_an_empty_operand_overlaps_nothing():
    """A product of no columns writes nothing, even in the midst of its input."""
    validate(taped("matmul", tensor(16, (4, 0)), tensor(0, (4, 8)), tensor(512, (8, 0))), SIZES)


@pytest.mark.parametrize("strides", [(0, 1), (1, 0), (1, 1), (7, 1), (4, 4), (8, 0)])
def test_an_output_that_writes_an_element_twice_is_refused(strides):
    record = addition()
    record[0]["operands"][0]["strides"][2:4] = strides
    assert "write an element twice" in refusal(record)


@pytest.mark.parametrize(("strides", "accepted"), [((1, 2, 3), False), ((1, 2, 4), True), ((4, 1, 2), True)])
def test_an_axis_must_step_over_all_smaller_ones_together(strides, accepted):
    """1 + 2 = 3: each axis alone steps over the next smaller one, but not over both."""
    record = taped("fill", tensor(0, (2, 2, 2)), 1.0)
    record[0]["operands"][0]["strides"][1:] = strides
    if accepted:
        validate(record, SIZES)
    else:
        assert "write an element twice" in refusal(record)


@pytest.mark.parametrize("strides", [(8, 1), (1, 4), (2, 8), (16, 2), (9, 1)])
def test_an_output_with_any_order_of_axes_and_with_gaps_is_accepted(strides):
    record = addition()
    record[0]["operands"][0]["offset"] = 1024
    record[0]["operands"][0]["strides"][2:4] = strides
    validate(record, SIZES)


@pytest.mark.parametrize("strides", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_an_input_may_repeat_and_overlap_itself(strides):
    record = addition()
    record[0]["operands"][1]["strides"][2:4] = strides
    validate(record, SIZES)


def test_axes_of_one_may_have_any_stride():
    record = addition()
    record[0]["operands"][0]["strides"][0] = 2**32 - 1
    record[0]["operands"][1]["strides"][1] = 2**32 - 1
    validate(record, SIZES)


@pytest.mark.parametrize("offset", [0, 4, 124])
def test_an_output_that_overlaps_an_input_is_refused(offset):
    record = set_at(addition(), ("operands", 0, "offset"), 128 + offset)
    if offset == 0:
        validate(record, SIZES)  # exactly over `a`: allowed for an element-wise op
    else:
        assert "operand out (bytes " in refusal(record)
        assert "or exactly the same tensor" in refusal(record)


@pytest.mark.parametrize(("dtype", "x"), [(F32, 124), (F16, 62), (U8, 31)])
def test_an_overlap_of_one_element_is_refused(dtype, x):
    out = tensor(0, (4, 8), dtype)
    assert "overlaps x" in refusal(taped("copy", out, tensor(x, (4, 8), dtype)))
    assert "overlaps x" in refusal(taped("copy", tensor(x, (4, 8), dtype), out))
    validate(taped("copy", out, tensor(x + dtype.itemsize, (4, 8), dtype)), SIZES)


def test_touching_ranges_do_not_overlap():
    validate(set_at(addition(), ("operands", 0, "offset"), 384), SIZES)
    validate(addition(), SIZES)


def test_the_same_bytes_in_another_space_do_not_overlap():
    record = addition()
    record[0]["operands"][0]["offset"] = 128
    record[0]["operands"][0]["strides"][2:4] = (1, 4)
    assert "overlaps" in refusal(record)
    record[0]["operands"][0]["space"] = Space.WEIGHTS
    validate(record, SIZES)


@pytest.mark.parametrize(
    ("x", "accepted"),
    [
        (tensor(0, (4, 8), F32), True),
        (tensor(0, (4, 8), F32, (1, 4)), False),  # transposed: a thread would read what another has written
        (tensor(0, (4, 8), F16), False),  # narrower: the same start, other elements
        (tensor(4, (4, 8), F32), False),
    ],
)
def test_in_place_means_the_same_layout_and_dtype(x, accepted):
    record = taped("unary", "exp", tensor(0, (4, 8)), x)
    if accepted:
        validate(record, SIZES)
    else:
        assert "overlaps x" in refusal(record)


def test_interleaved_operands_are_refused_as_documented():
    record = taped("copy", tensor(0, (16,), F32, (2,)), tensor(4, (16,), F32, (2,)))
    assert "overlaps" in refusal(record)


def test_only_elementwise_ops_may_write_over_their_input():
    assert "overlaps a" in refusal(taped("matmul", tensor(0, (4, 4)), tensor(0, (4, 4)), tensor(64, (4, 4))))
    assert "overlaps table" in refusal(
        taped("gather", tensor(0, (4, 8)), tensor(0, (4, 8)), tensor(512, (4,), I32))
    )


def test_a_weight_is_not_overwritten_by_a_norm_in_place():
    x, weight = tensor(0, (1, 8)), tensor(0, (8,))
    assert "overlaps weight" in refusal(taped("rmsnorm", x, x, weight))
    # Here their fields are the same, but seven rows read the weight that the first one overwrites.
    column = taped("rmsnorm", tensor(0, (8, 1, 1, 1)), tensor(64, (8, 1, 1, 1)), tensor(0, (1,)))
    column[0]["operands"][0]["strides"][:] = column[0]["operands"][2]["strides"][:] = (1, 0, 0, 0)
    assert "overlaps weight" in refusal(column)


def test_two_outputs_may_not_overlap():
    record = taped("topk", tensor(0, (4, 2)), tensor(16, (4, 2), I32), tensor(512, (4, 8)))
    assert "operand values (bytes 0 to 32) overlaps indices" in refusal(record)


@pytest.mark.parametrize(
    ("method", "args", "says"),
    [
        ("topk", (tensor(0, (2, 9)), tensor(128, (2, 9), I32), tensor(512, (2, 8))), "k must be <= n"),
        ("reduce", ("max", tensor(0, (2,)), tensor(128, (2, 0))), "only a sum"),
        ("reduce", ("min", tensor(0, (2,)), tensor(128, (2, 0))), "only a sum"),
        ("reduce", ("mean", tensor(0, (2,)), tensor(128, (2, 0))), "only a sum"),
        ("argmax", (tensor(0, (2,), I32), tensor(128, (2, 0))), "dim n is 0"),
        ("gather", (tensor(0, (2, 4)), tensor(128, (0, 4)), tensor(64, (2,), I32)), "dim t is 0"),
        ("conv2d", images((1, 2, 2, 2), (1, 3, 2, 2), (2, 2, 1, 1)), "c = 3 input channels do not divide"),
        ("conv2d", images((1, 3, 2, 2), (1, 4, 2, 2), (3, 2, 1, 1)), "o = 3 output channels do not divide"),
        ("conv2d", images((1, 3, 2, 2), (1, 0, 2, 2), (3, 1, 1, 1)), "do not divide into 0 groups"),
        ("conv2d", images((1, 3, 2, 2), (1, 4, 2, 2), (3, 0, 1, 1)), "dim cg is 0"),
        ("resize", images((1, 1, 2, 2), (1, 1, 0, 2)), "dim h is 0"),
        ("resize", images((1, 1, 2, 2), (1, 1, 2, 0)), "dim w is 0"),
    ],
)
def test_rules_of_single_ops(method, args, says):
    assert says in refusal(taped(method, *args))


@pytest.mark.parametrize(("param", "low"), [(0, 1), (1, 1), (2, 0), (3, 0), (4, 1), (5, 1)])
def test_conv_parameters_stay_in_range(param, low):
    record = taped("conv2d", tensor(0, (1, 1, 2, 2)), tensor(64, (1, 1, 2, 2)), tensor(512, (1, 1, 1, 1)))
    for value in (65536, 2**31, 2**32 - 1, low - 1):
        if value >= 0:
            record[0]["params"][param] = value
            assert "is allowed" in refusal(record)
    for value in (low, 65535):
        record[0]["params"][param] = value
        validate(record, SIZES)


def test_optional_operands_are_absent_or_whole():
    record = taped("rmsnorm", tensor(0), tensor(128), None)
    validate(record, SIZES)
    record[0]["operands"][2]["offset"] = 8
    assert "operand 2 is unused" in refusal(record)


def test_the_work_of_the_whole_tape_is_bounded():
    raw = addition().tobytes()
    assert validate(raw * 3, SIZES, work_limit=96).work == 96
    message = refusal(raw * 4, work_limit=96)
    assert message.startswith("record 3 (binary): the tape costs more than 96")


def test_repeated_inputs_count_as_work():
    record = taped("reduce", "sum", tensor(0, (1,)), tensor(128, (1,)))
    record[0]["dims"][:4] = (1, 1, 1, 2**31 - 1)
    assert validate(record, SIZES).work == 2**31 - 1
    assert "costs more" in refusal(record, work_limit=2**20)


@pytest.mark.parametrize(
    ("method", "args"),
    [
        ("reduce", ("sum", tensor(0, (32,)), tensor(128, (32, 0)))),
        ("matmul", (tensor(0, (4, 8)), tensor(128, (4, 0)), tensor(128, (0, 8)))),
        ("conv2d", (*images((1, 2, 4, 4), (1, 1, 4, 4), (2, 1, 0, 3)), tensor(1024, (2,)))),
    ],
)
def test_writing_the_result_of_an_empty_sum_counts_as_work(method, args):
    """Else 65536 such records could write the whole memory 65536 times at no cost."""
    assert validate(taped(method, *args), SIZES).work == 32


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_the_op_table_fits_a_record(op):
    assert len(op.operands) <= 5
    assert len(op.dims) <= 10
    assert len(op.params) <= 12
    assert all(len(o.axes) <= 4 and set(o.axes) <= set(op.dims) for o in op.operands)
    assert [o.out for o in op.operands] == sorted((o.out for o in op.operands), reverse=True), "outputs first"
    assert set(op.nonzero) <= set(op.dims)
    assert not op.elementwise or len(op.outputs) == 1
