"""What a guest can tell from a host that copies: nothing, or an error. Never a wrong answer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from nocopy.errors import DeadlineError
from nocopy.interfaces.wasi_nn.encoding import Errno
from nocopy.wasm import Limits
from tests.interfaces.wasi_nn.nn_guest import OUT, NnGuest, built, identity, model

COUNT = 4096
NBYTES = 4 * COUNT
X = np.arange(COUNT, dtype=np.float32)


@pytest.fixture(params=[identity(NBYTES), model(["Identity"], "n")], ids=["fixed", "any"])
def source(request: pytest.FixtureRequest) -> bytes:
    """A model that may be run in place from the first time on, and one from the second."""
    return request.param


@pytest.fixture
def guest() -> Iterator[NnGuest]:
    with NnGuest() as guest:
        yield guest


@pytest.fixture
def context(guest: NnGuest, source: bytes) -> int:
    """A context that has inferred once."""
    context = guest.context(guest.load(source))
    guest.infer(context, [X], [NBYTES])
    return context


# Inputs that change too early


def test_a_large_input_that_is_refilled_before_its_output_is_fetched_is_an_error(
    guest: NnGuest, context: int
) -> None:
    at = guest.set_input(context, 0, X)
    guest.ok("compute", context)
    guest.put(X + 1, at)
    guest.refused(
        Errno.RUNTIME_ERROR, "--wasi-nn-copy", "get_output", context, 0, guest.room(NBYTES), NBYTES, OUT
    )
    guest.set_input(context, 0, X, at)  # and it goes on
    guest.ok("compute", context)
    assert guest.get_output(context, 0, NBYTES) == X.tobytes()


def test_what_an_allocator_writes_into_a_freed_input_is_noticed(guest: NnGuest, context: int) -> None:
    at = guest.set_input(context, 0, X)
    guest.memory.write(at, b"\x10\x20\x30\x40")
    guest.ok("compute", context)
    guest.refused(
        Errno.RUNTIME_ERROR, "has changed it", "get_output", context, 0, guest.room(NBYTES), NBYTES, OUT
    )


@pytest.mark.parametrize("count", [1, 256, 1024])
def test_a_small_input_is_used_as_it_was(guest: NnGuest, count: int) -> None:
    context = guest.context(guest.load(identity(4 * count)))
    for turn in range(3):
        at = guest.set_input(context, 0, X[:count] + turn)
        guest.memory.write(at, bytes(4 * count))
        guest.ok("compute", context)
        guest.memory.write(at, b"\xff" * 4 * count)
        assert guest.get_output(context, 0, 4 * count) == (X[:count] + turn).tobytes()


def test_a_host_that_was_told_to_copy_copies(source: bytes) -> None:
    with NnGuest(nn_copy=True) as guest:
        context = guest.context(guest.load(source))
        at = guest.set_input(context, 0, X)
        guest.memory.write(at, bytes(NBYTES))
        guest.ok("compute", context)
        guest.set_input(context, 0, X + 1)
        assert guest.get_output(context, 0, NBYTES) == X.tobytes()
        assert guest.get_output(context, 0, NBYTES) == X.tobytes()
        assert guest.ledger["staged"] == 4 * NBYTES


def test_one_buffer_for_several_small_inputs(guest: NnGuest) -> None:
    from onnx import TensorProto, helper

    ports = [[(n, TensorProto.FLOAT, [4]) for n in names] for names in ("ab", "c")]
    context = guest.context(guest.load(built([helper.make_node("Sub", ["a", "b"], ["c"])], *ports)))
    at = guest.set_input(context, 0, X[4:8])
    guest.set_input(context, 1, X[:4], at)
    guest.ok("compute", context)
    assert guest.get_output(context, 0, 16) == (X[4:8] - X[:4]).tobytes()


# Inputs that are set anew


def test_outputs_are_those_of_the_inputs_at_compute(guest: NnGuest, context: int) -> None:
    guest.set_input(context, 0, X)
    guest.ok("compute", context)
    guest.set_input(context, 0, X + 1)
    assert guest.get_output(context, 0, NBYTES) == X.tobytes()
    guest.ok("compute", context)
    assert guest.get_output(context, 0, NBYTES) == (X + 1).tobytes()


def test_the_same_output_twice(guest: NnGuest, context: int) -> None:
    guest.set_input(context, 0, X)
    guest.ok("compute", context)
    first, second = guest.room(NBYTES), guest.room(NBYTES)
    assert guest.get_output(context, 0, NBYTES, first) == X.tobytes()
    guest.memory.write(first, bytes(NBYTES))
    assert guest.get_output(context, 0, NBYTES, second) == X.tobytes()
    assert guest.get_output(context, 0, NBYTES, first) == X.tobytes()


def test_an_output_that_is_not_kept_is_an_error_and_not_another_ones(guest: NnGuest, context: int) -> None:
    guest.infer(context, [X], [NBYTES])
    guest.set_input(context, 0, X + 1)
    guest.refused(
        Errno.RUNTIME_ERROR, "fetched again", "get_output", context, 0, guest.room(NBYTES), NBYTES, OUT
    )
    guest.ok("compute", context)
    assert guest.get_output(context, 0, NBYTES) == (X + 1).tobytes()


def test_the_last_tensor_that_was_set_counts(guest: NnGuest, context: int) -> None:
    guest.set_input(context, 0, X)
    guest.set_input(context, 0, X + 1)
    guest.ok("compute", context)
    assert guest.get_output(context, 0, NBYTES) == (X + 1).tobytes()


def test_a_refused_tensor_changes_nothing(guest: NnGuest, context: int) -> None:
    at = guest.set_input(context, 0, X)
    guest.ok("compute", context)
    guest.refused(
        Errno.INVALID_ARGUMENT, "was given", "set_input", context, 0, guest.tensor(at, 0, [COUNT], 2 * COUNT)
    )
    assert guest.get_output(context, 0, NBYTES) == X.tobytes()
    guest.ok("compute", context)
    assert guest.get_output(context, 0, NBYTES) == X.tobytes()


def test_a_record_that_changes_between_two_calls_is_read_again(guest: NnGuest, context: int) -> None:
    other = guest.put(X + 7)
    at = guest.set_input(context, 0, X)
    record = guest.tensor(at, 1, [COUNT], NBYTES)
    for _ in range(2):
        guest.ok("set_input", context, 0, record)
    guest.tensor(other, 1, [COUNT], NBYTES)
    guest.ok("set_input", context, 0, record)
    guest.ok("compute", context)
    assert guest.get_output(context, 0, NBYTES) == (X + 7).tobytes()


# Places


@pytest.mark.parametrize("shift", [0, 4, NBYTES - 4, -4])
def test_an_output_may_lie_over_the_input(guest: NnGuest, context: int, shift: int) -> None:
    guest.next += 1 << 16
    at = guest.set_input(context, 0, X)
    guest.next += NBYTES
    guest.ok("compute", context)
    assert guest.get_output(context, 0, NBYTES, at + shift) == X.tobytes()


@pytest.mark.parametrize("shift", [1, 2, 3])
def test_tensors_may_lie_at_odd_addresses(guest: NnGuest, context: int, shift: int) -> None:
    at, out = guest.room(NBYTES + 4) + shift, guest.room(NBYTES + 4) + shift
    for turn in range(2):
        guest.set_input(context, 0, X + turn, at)
        guest.ok("compute", context)
        assert guest.get_output(context, 0, NBYTES, out) == (X + turn).tobytes()


def test_the_memory_may_grow_at_any_time(guest: NnGuest, context: int) -> None:
    at, out = guest.room(NBYTES), guest.room(NBYTES)
    for turn in range(3):
        guest.set_input(context, 0, X + turn, at)
        guest.call("grow", 3)
        guest.ok("compute", context)
        guest.call("grow", 3)
        assert guest.get_output(context, 0, NBYTES, out) == (X + turn).tobytes()


def test_contexts_of_one_graph_do_not_disturb_each_other(guest: NnGuest, source: bytes) -> None:
    graph = guest.load(source)
    contexts = [guest.context(graph) for _ in range(3)]
    for _ in range(2):
        for i, context in enumerate(contexts):
            guest.set_input(context, 0, X + i)
        for context in contexts:
            guest.ok("compute", context)
        for i, context in reversed(list(enumerate(contexts))):
            assert guest.get_output(context, 0, NBYTES) == (X + i).tobytes()


# Errors at the right call


def test_a_model_that_fails_by_its_data_fails_in_compute(guest: NnGuest) -> None:
    from onnx import TensorProto, helper

    ports = [[(n, TensorProto.INT32, ["n"]) for n in names] for names in ("ab", "c")]
    context = guest.context(guest.load(built([helper.make_node("Div", ["a", "b"], ["c"])], *ports)))
    ones = np.ones(4, np.int32)
    for _ in range(2):
        assert guest.infer(context, [ones, ones], [16]) == [ones.tobytes()]
        guest.set_input(context, 1, 0 * ones)
        guest.refused(Errno.RUNTIME_ERROR, "division by zero", "compute", context)
        guest.refused(Errno.RUNTIME_ERROR, "before anything", "get_output", context, 0, 0, 64, OUT)


def test_random_models_draw_once_for_each_compute(guest: NnGuest) -> None:
    from onnx import TensorProto, helper

    node = helper.make_node("RandomNormalLike", ["x"], ["y"])
    ports = [[(n, TensorProto.FLOAT, [8])] for n in "xy"]
    context = guest.context(guest.load(built([node], *ports)))
    guest.set_input(context, 0, X[:8])
    guest.ok("compute", context)
    first = guest.get_output(context, 0, 32)
    assert guest.get_output(context, 0, 32) == first
    guest.ok("compute", context)
    assert guest.get_output(context, 0, 32) != first


def test_bytes_that_are_no_truth_values_are_refused(guest: NnGuest) -> None:
    from onnx import TensorProto, helper

    ports = [[(n, TensorProto.BOOL, [4])] for n in "xy"]
    context = guest.context(guest.load(built([helper.make_node("Not", ["x"], ["y"])], *ports)))
    assert guest.infer(context, [np.array([0, 1, 1, 0], np.uint8)], [4]) == [b"\1\0\0\1"]
    guest.set_input(context, 0, np.array([0, 1, 2, 255], np.uint8))
    guest.ok("compute", context)
    guest.refused(Errno.INVALID_ARGUMENT, "truth values", "get_output", context, 0, 0, 4, OUT)


def test_a_model_that_never_ends_ends_with_the_deadline() -> None:
    with NnGuest(limits=Limits(deadline=1.0)) as guest:
        context = guest.context(guest.load(endless()))
        guest.set_input(context, 0, X[:4])
        with pytest.raises(DeadlineError, match="a model ran until the deadline"):
            guest.call("compute", context)


def endless() -> bytes:
    """A loop without a condition that would end it."""
    from onnx import TensorProto, helper, numpy_helper

    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["again"]), helper.make_node("Neg", ["x"], ["y"])],
        "body",
        [
            value("i", TensorProto.INT64, []),
            value("c", TensorProto.BOOL, []),
            value("x", TensorProto.FLOAT, [4]),
        ],
        [value("again", TensorProto.BOOL, []), value("y", TensorProto.FLOAT, [4])],
    )
    yes = numpy_helper.from_array(np.array(True), "yes")
    node = helper.make_node("Loop", ["", "yes", "a"], ["b"], body=body)
    return built([node], [("a", TensorProto.FLOAT, [4])], [("b", TensorProto.FLOAT, [4])], [yes])
