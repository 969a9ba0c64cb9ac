"""The C tensor helpers name the same bytes as NumPy's views of the same array."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nocopy.memory.dtype import DType
from nocopy.tape.record import Space, Tensor
from tests.sdk.driver import Driver

RELAXED = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
BASE = 4096
shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


def array(shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros(shape, np.float16)


def named(view: np.ndarray, of: np.ndarray) -> Tensor:
    """The tensor that lies at `BASE` as `view` lies in `of`."""
    start = view.__array_interface__["data"][0] - of.__array_interface__["data"][0]
    strides = tuple(s // 2 for s in view.strides)
    return Tensor(Space.GUEST, BASE + start, view.shape, DType.F16, strides)


@RELAXED
@given(shape=shapes, data=st.data())
def test_slices_and_selections_are_numpys(
    driver: Driver, shape: tuple[int, ...], data: st.DataObject
) -> None:
    whole = array(shape)
    axis = data.draw(st.integers(0, len(shape) - 1))
    start = data.draw(st.integers(0, shape[axis] - 1))
    stop = data.draw(st.integers(start + 1, shape[axis]))
    step = data.draw(st.integers(1, 7))
    at = (slice(None),) * axis
    sliced = driver.apply("sliced", named(whole, whole), axis, start, stop, step)
    view = named(whole[(*at, slice(start, stop, step))], whole)
    # NumPy does not multiply the stride of an axis of size 1; the header does, and nobody steps along it.
    assert sliced is not None
    assert (sliced.offset, sliced.shape) == (view.offset, view.shape)
    assert all(a == b or n == 1 for a, b, n in zip(sliced.strides, view.strides, view.shape, strict=True))
    selected = driver.apply("selected", named(whole, whole), axis, start)
    wanted = whole[(*at, start, ...)]
    assert selected == named(wanted, whole)
    assert driver.elements() == wanted.size


@pytest.mark.parametrize("axes", [1, 2, 3, 4])
def test_permutations_are_numpys(driver: Driver, axes: int) -> None:
    whole = array((2, 3, 5, 7)[:axes])
    for order in permutations(range(axes)):
        given_order = (*order, *[9] * (4 - axes))
        assert driver.apply("permuted", named(whole, whole), *given_order) == named(
            whole.transpose(order), whole
        )


@pytest.mark.parametrize("axes", [2, 3, 4])
def test_transposed_exchanges_the_last_two_axes(driver: Driver, axes: int) -> None:
    whole = array((2, 3, 5, 7)[:axes])
    assert driver.apply("transposed", named(whole, whole)) == named(np.swapaxes(whole, -1, -2), whole)


def test_reshapes_only_what_lies_without_gaps(driver: Driver) -> None:
    whole = array((6, 4))
    assert driver.apply("reshaped", named(whole, whole), 3, shape=(2, 3, 4)) == named(
        whole.reshape(2, 3, 4), whole
    )
    assert driver.apply("reshaped", named(whole, whole), 2, shape=(6, 5)) is None
    assert driver.apply("reshaped", named(whole.T, whole), 1, shape=(24,)) is None
    assert driver.apply("reshaped", named(whole[:, 1:], whole), 1, shape=(18,)) is None
    assert driver.apply("reshaped", named(whole[2:], whole), 1, shape=(16,)) == named(
        whole[2:].reshape(16), whole
    )


@pytest.mark.parametrize("axes", [0, 1, 2, 3, 4])
def test_constructors_are_row_major(driver: Driver, axes: int) -> None:
    shape = (2, 3, 5, 7)[:axes]
    wanted = Tensor(Space.GUEST, BASE, shape, DType.U8)
    assert driver.apply("by_axes", Tensor(Space.GUEST, BASE, (), DType.U8), axes, shape=shape) == wanted
    in_kv = Tensor(Space.KV, 2**40, shape, DType.U8)
    assert driver.apply("tensor_in", Tensor(Space.KV, 2**40, (), DType.U8), axes, shape=shape) == in_kv


@pytest.mark.parametrize(
    ("helper", "arguments"),
    [
        ("permuted", (0, 0, 0, 0)),
        ("permuted", (0, 2, 0, 0)),
        ("sliced", (2, 0, 1, 1)),
        ("sliced", (0, 3, 2, 1)),
        ("sliced", (0, 0, 5, 1)),
        ("sliced", (0, 0, 4, 0)),
        ("sliced", (0, 0, 4, 2**31)),
        ("selected", (0, 4)),
        ("selected", (2, 0)),
    ],
)
def test_impossible_requests_give_an_invalid_tensor(
    driver: Driver, helper: str, arguments: tuple[int, ...]
) -> None:
    signed = [a - 2**32 if a >= 2**31 else a for a in arguments]
    assert driver.apply(helper, Tensor(Space.GUEST, 0, (4, 4), DType.F16), *signed) is None


def test_too_many_axes_and_strides_over_32_bits_are_impossible(driver: Driver) -> None:
    point = Tensor(Space.GUEST, 0, (), DType.U8)
    assert driver.apply("tensor_in", point, 5, shape=(1, 1, 1, 1, 1)) is None
    assert driver.apply("tensor_in", point, 3, shape=(1, 2**16, 2**16)) is None
    assert driver.apply("tensor_in", point, 3, shape=(1, 2**16, 2**16 - 1)) is not None
    assert driver.apply("transposed", Tensor(Space.GUEST, 0, (4,), DType.U8)) is None


def test_itemsizes_are_the_dtypes(driver: Driver) -> None:
    known = {int(d): d.itemsize for d in DType}
    assert [driver.itemsize(d) for d in range(32)] == [known.get(d, 0) for d in range(32)]
