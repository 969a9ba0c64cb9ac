import ctypes
import gc
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nocopy.errors import ClosedError, CopyRefusedError, StaleViewError, UsageError
from nocopy.memory import DType, LinearMemory, TensorView
from nocopy.memory.dlpack import DLDeviceType, live_exports

SIZE = 64 << 10
DTYPES = ["f32", "f16", "bf16", "i32", "u8"]


@pytest.fixture
def memory():
    with LinearMemory(SIZE) as memory:
        yield memory


@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_shares_the_bytes(memory, dtype):
    view = memory.view((3, 5), dtype, offset=64)
    array = view.numpy()
    assert array.dtype == DType.of(dtype).numpy
    assert array.ctypes.data == memory.address + 64 == view.address
    array[1, 2] = 7
    assert np.frombuffer(memory.read(64, array.nbytes), array.dtype)[7] == 7
    assert not array.flags.owndata


@pytest.mark.parametrize("dtype", DTYPES)
def test_asarray_shares_the_bytes(memory, dtype):
    view = memory.view((4, 2), dtype)
    array = np.asarray(view)
    assert array.dtype == DType.of(dtype).numpy
    assert array.ctypes.data == memory.address


def test_bfloat16_goes_through_ml_dtypes(memory):
    memory.write(0, np.array([1.5], np.float32).tobytes()[2:])
    assert memory.view(1, "bf16").numpy()[0] == ml_dtypes.bfloat16(1.5)


@pytest.mark.parametrize("dtype", ["f32", "f16", "i32", "u8"])
def test_from_dlpack_shares_the_bytes(memory, dtype):
    view = memory.view((4, 6), dtype, offset=128)[::2, 1:4]
    array = np.from_dlpack(view)
    assert array.ctypes.data == view.address
    assert array.dtype == view.dtype.numpy
    array[1, 1] = 9
    assert view.numpy()[1, 1] == 9
    assert view.numpy().strides == array.strides


def test_from_dlpack_copies_only_on_request(memory):
    view = memory.view(4, "f32")
    assert np.from_dlpack(view, copy=False).ctypes.data == memory.address
    assert np.from_dlpack(view, copy=True).ctypes.data != memory.address


def test_dlpack_capsule_version_follows_the_consumer(memory):
    view = memory.view(4, "f32")
    assert '"dltensor"' in repr(view.__dlpack__())
    assert '"dltensor"' in repr(view.__dlpack__(max_version=(0, 8)))
    assert '"dltensor_versioned"' in repr(view.__dlpack__(max_version=(1, 0)))
    assert '"dltensor_versioned"' in repr(view.__dlpack__(max_version=(2, 0)))


def test_dlpack_capsules_that_nobody_takes_are_freed(memory):
    gc.collect()
    before = live_exports()
    capsules = [memory.view(4, "bf16").__dlpack__(max_version=(1, 0)) for _ in range(10)]
    assert live_exports() == before + 10
    del capsules
    assert live_exports() == before


def test_dlpack_exports_end_when_the_consumer_lets_go(memory):
    before = live_exports()
    array = np.from_dlpack(memory.view(4, "f32"))
    assert live_exports() == before + 1
    del array
    assert live_exports() == before


def test_dlpack_names_bfloat16(memory):
    capsule = memory.view((2, 3), "bf16").__dlpack__()
    get = ctypes.PyDLL(None).PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    tensor = ctypes.string_at(get(capsule, b"dltensor"), 24)
    data, device, number, ndim = np.frombuffer(tensor, "<u8,<i4,<i4,<i4", count=1)[0].tolist()
    assert (data, device, number, ndim) == (memory.address, 1, 0, 2)
    assert (tensor[20], tensor[21], tensor[22]) == (4, 16, 1)


def test_dlpack_refuses_streams_and_other_devices(memory):
    view = memory.view(4, "f32")
    with pytest.raises(UsageError, match="stream"):
        view.__dlpack__(stream=1)
    with pytest.raises(CopyRefusedError, match="DLPack device"):
        view.__dlpack__(dl_device=(DLDeviceType.METAL, 0))
    assert issubclass(CopyRefusedError, BufferError)


def test_buffer_shares_the_bytes(memory):
    view = memory.view((2, 3), "f32")
    buffer = view.buffer()
    assert (buffer.shape, buffer.format, buffer.readonly) == ((2, 3), "f", False)
    buffer[1, 2] = 4.0
    assert view.numpy()[1, 2] == 4.0


@pytest.mark.skipif(sys.version_info < (3, 12), reason="__buffer__ came with Python 3.12")
def test_memoryview_of_a_view(memory):
    view = memory.view(4, "i32")
    memoryview(view)[2] = 5
    assert view.numpy()[2] == 5


def test_bfloat16_has_no_buffer_and_says_what_to_use(memory):
    with pytest.raises(UsageError, match="DLPack"):
        memory.view(2, "bf16").buffer()


def test_all_bytes_of_a_memory_as_a_buffer(memory):
    memory.buffer()[SIZE - 1] = 3
    assert memory.read(SIZE - 1, 1) == b"\3"


# Views of views


def test_slices_reshapes_and_permutations_are_views_at_the_right_place(memory):
    base = memory.view((4, 6), "f32", offset=16)
    base[...] = np.arange(24).reshape(4, 6)
    truth = np.arange(24, dtype=np.float32).reshape(4, 6)
    for view, wanted in [
        (base[1], truth[1]),
        (base[1, 2], truth[1, 2]),
        (base[1:3, ::2], truth[1:3, ::2]),
        (base[::-1], truth[::-1]),
        (base[..., 3], truth[..., 3]),
        (base[:, None], truth[:, None]),
        (base[4:], truth[4:]),
        (base.reshape(2, -1), truth.reshape(2, -1)),
        (base.reshape((24,)), truth.reshape(24)),
        (base.T, truth.T),
        (base.transpose(), truth.T),
        (base.reshape(2, 3, 4).permute(2, 0, 1), truth.reshape(2, 3, 4).transpose(2, 0, 1)),
        (base[1].reshape(2, 3)[1], truth[1].reshape(2, 3)[1]),
    ]:
        assert isinstance(view, TensorView)
        assert view.shape == wanted.shape
        assert np.array_equal(view.numpy(), wanted)
        if view.size:
            assert view.address == memory.address + view.offset


def test_what_needs_a_copy_is_refused(memory):
    base = memory.view((4, 6), "f32")
    with pytest.raises(CopyRefusedError):
        base.T.reshape(24)
    with pytest.raises(CopyRefusedError):
        base[[0, 2]]
    with pytest.raises(CopyRefusedError):
        base[base.numpy() > 0]


@pytest.mark.parametrize(
    "use",
    [
        lambda view: view[4],
        lambda view: view[0, 0, 0],
        lambda view: view.reshape(5, 5),
        lambda view: view.reshape(-1, -1),
        lambda view: view.reshape(-1, 0),
        lambda view: view.permute(0, 0),
        lambda view: view.transpose(0, 2),
        lambda view: view.__setitem__(9, 1),
        lambda view: len(view[0, 0]),
    ],
)
def test_impossible_views_are_usage_errors(memory, use):
    with pytest.raises(UsageError):
        use(memory.view((4, 6), "f32"))


@pytest.mark.parametrize(
    ("offset", "shape", "dtype", "strides"),
    [
        (SIZE, 1, "u8", None),
        (SIZE - 4, 2, "f32", None),
        (-4, 1, "f32", None),
        (2, 1, "f32", None),
        (1, 1, "bf16", None),
        (0, -1, "u8", None),
        (0, (1 << 40, 1 << 40), "u8", None),
        (0, 2, "u8", (-1,)),
        (0, 2, "u8", (SIZE,)),
        (0, (2, 2), "u8", (1,)),
        (0, 1, "f64", None),
        (0, 1, "complex64", None),
        (0, 1, DType.NONE, None),
        (1 << 64, 1, "u8", None),
    ],
)
def test_tensors_that_are_not_inside_are_refused(memory, offset, shape, dtype, strides):
    with pytest.raises(UsageError):
        TensorView(memory, offset, shape, dtype, strides=strides)


@given(
    offset=st.integers(-8, SIZE + 8),
    shape=st.lists(st.integers(0, 40), max_size=3),
    data=st.data(),
    dtype=st.sampled_from(DTYPES),
)
def test_a_view_is_accepted_exactly_when_every_element_is_inside(offset, shape, data, dtype):
    strides = data.draw(st.lists(st.integers(-2000, 2000), min_size=len(shape), max_size=len(shape)))
    size = DType.of(dtype).itemsize
    places = [offset + size * int(np.dot(index, strides)) for index in np.ndindex(*shape)] or [offset - size]
    inside = offset % size == 0 and all(0 <= p <= SIZE - size for p in places) and 0 <= offset <= SIZE
    if not all(shape):
        inside = offset % size == 0 and 0 <= offset <= SIZE
    with LinearMemory(SIZE, reserve=SIZE, guard=0) as memory:
        try:
            view = TensorView(memory, offset, shape, dtype, strides=strides)
        except UsageError:
            assert not inside
        else:
            assert inside
            view[...] = 1
            assert np.all(view.numpy() == 1)


# Life and death


def test_a_view_of_a_closed_memory_is_a_closed_error():
    memory = LinearMemory(SIZE)
    view = memory.view(4, "f32")
    memory.close()
    for use in (
        view.numpy,
        view.buffer,
        view.__dlpack__,
        lambda: view.address,
        lambda: view[0],
        view.refresh,
    ):
        with pytest.raises(ClosedError):
            use()
    with pytest.raises(ClosedError):
        np.asarray(view)
    assert "closed" in view._repr_html_()
    assert "closed" in repr(view)


def test_arrays_handed_out_before_outlive_the_memory():
    memory = LinearMemory(SIZE)
    view = memory.view(4, "f32")
    view[...] = 5
    arrays = [view.numpy(), np.asarray(view), np.from_dlpack(view), np.asarray(view.buffer())]
    memory.close()
    del memory, view
    gc.collect()
    for array in arrays:
        assert np.all(array == 5)
        array[0] = 5


def test_a_view_keeps_a_forgotten_memory_alive():
    view = LinearMemory(SIZE).view(4, "f32")
    gc.collect()
    view[...] = 3
    assert np.all(view.numpy() == 3)


def test_a_view_is_stale_after_growth_and_can_be_refreshed(memory):
    view = memory.view(4, "f32")
    array = view.numpy()
    memory.grow(2 * SIZE)
    for use in (view.numpy, view.buffer, view.__dlpack__, lambda: view.address, lambda: view[0]):
        with pytest.raises(StaleViewError, match="refresh"):
            use()
    fresh = view.refresh()
    fresh[...] = 2
    assert np.all(array == 2)  # the base never moves: what was handed out still points at the same bytes


def test_conversion_to_another_dtype_is_a_copy_and_is_refused_without_one(memory):
    view = memory.view(4, "f16")
    assert np.asarray(view, dtype=np.float64).dtype == np.float64
    with pytest.raises((CopyRefusedError, ValueError)):
        np.asarray(view, dtype=np.float64, copy=False)
    with pytest.raises(CopyRefusedError):
        memory.view(4, "bf16").__array__(np.float32, copy=False)


def test_html_escapes_and_describes(memory):
    text = memory.view((2, 2), "f32")._repr_html_()
    assert "f32 [2, 2]" in text
    assert hex(memory.address) in text


def test_contiguity(memory):
    view = memory.view((4, 6), "f32")
    assert view.is_contiguous
    assert not view.T.is_contiguous
    assert not view[:, ::2].is_contiguous
    assert view[1:2].is_contiguous
    assert view[4:].is_contiguous


def test_copy_is_on_purpose_and_elsewhere(memory):
    view = memory.view((2, 3), "bf16")
    view[...] = np.arange(6).reshape(2, 3)
    copy = view.T.copy()
    assert copy.address != view.address
    assert np.array_equal(copy.numpy(), view.numpy().T)
