"""What views offer of memory that CUDA has mapped, and the table that tells them; no GPU takes part."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nocopy.errors import ClosedError, CopyRefusedError, StaleViewError, UsageError
from nocopy.memory import LinearMemory, TensorView, mapped
from nocopy.memory.dlpack import live_exports
from nocopy.memory.mapped import Mapping

SIZE = 65536
AWAY = 1 << 44
"""How far from the host's address kernels see the pages, in these tests."""


@pytest.fixture
def memory() -> Iterator[LinearMemory]:
    memory = LinearMemory(SIZE, reserve=4 * SIZE, guard=0)
    yield memory
    mapped.remove(memory.address)
    memory.close()


def map_it(memory: LinearMemory, *, number: int = 0) -> None:
    start = memory.address
    mapped.add(Mapping(start, start + memory.size, start + AWAY, number))


# The table


@given(
    st.lists(st.tuples(st.integers(1, 9), st.sampled_from([0, 1, 64]), st.booleans()), max_size=12),
    st.integers(-5, 110),
    st.integers(0, 30),
)
def test_bytes_are_mapped_if_registrations_cover_them_in_one_piece(
    pieces: list[tuple[int, int, bool]], start: int, size: int
) -> None:
    """Against a table of every byte: pieces of some bytes follow each other, each at its own distance."""
    at, where, added = 0, dict[int, int](), list[int]()
    for nbytes, away, there in pieces:
        if there:
            mapped.add(Mapping(at, at + nbytes, at + away))
            added.append(at)
            where |= dict.fromkeys(range(at, at + nbytes), away)
        at += nbytes
    try:
        found = mapped.find(start, start + size)
        wanted = {where.get(byte) for byte in range(start, start + max(size, 1))}
        if len(wanted) == 1 and None not in wanted:
            assert found == Mapping(start, start + max(size, 1), start + wanted.pop())
        else:
            assert found is None
    finally:
        for piece in added:
            mapped.remove(piece)
            mapped.remove(piece)
    assert mapped.find(start, start + size) is None


def test_pages_of_two_gpus_are_not_one_piece() -> None:
    mapped.add(Mapping(0, 8, 0, 0))
    mapped.add(Mapping(8, 16, 8, 1))
    try:
        assert mapped.find(4, 12) is None
        assert mapped.find(8, 16) == Mapping(8, 16, 8, 1)
    finally:
        mapped.remove(0)
        mapped.remove(8)


# The CUDA array interface


def test_memory_that_cuda_has_not_mapped_has_no_cuda_array_interface(memory: LinearMemory) -> None:
    view = memory.view(4, "f32")
    assert not hasattr(view, "__cuda_array_interface__")
    with pytest.raises(AttributeError, match="CUDA has not mapped"):
        _ = view.__cuda_array_interface__


@pytest.mark.parametrize("dtype", ["f32", "f16", "i32", "u8"])
def test_the_cuda_array_interface_describes_the_elements_where_kernels_see_them(
    memory: LinearMemory, dtype: str
) -> None:
    map_it(memory)
    base = memory.view((4, 6), dtype, offset=64)
    size = base.dtype.itemsize
    assert base.__cuda_array_interface__ == {
        "version": 3,
        "shape": (4, 6),
        "typestr": base.numpy().dtype.str,
        "data": (memory.address + 64 + AWAY, False),
        "strides": (6 * size, size),
        "stream": None,
    }
    for view in (base[1:, ::2], base[::-1], base.T, base[2, 3]):
        found, array = view.__cuda_array_interface__, view.numpy()
        assert found["data"] == (array.ctypes.data + AWAY, False)
        assert (found["shape"], found["strides"]) == (array.shape, array.strides)
    empty = memory.view((0, 3), dtype).__cuda_array_interface__
    assert (empty["data"], empty["shape"]) == ((0, False), (0, 3))


def test_bfloat16_has_no_cuda_array_interface_and_says_what_to_use(memory: LinearMemory) -> None:
    map_it(memory)
    view = memory.view(4, "bf16")
    with pytest.raises(AttributeError, match=r"torch\.from_dlpack"):
        _ = view.__cuda_array_interface__
    assert not hasattr(view, "__cuda_array_interface__")


def test_a_view_past_what_is_mapped_is_not_mapped(memory: LinearMemory) -> None:
    map_it(memory)
    memory.grow(2 * SIZE)
    assert memory.view(SIZE // 4, "f32").__cuda_array_interface__
    assert not hasattr(memory.view(SIZE // 4, "f32", offset=4), "__cuda_array_interface__")


# DLPack


class Tensor(ctypes.Structure):
    """DLTensor of dlpack.h."""

    _fields_ = [
        ("data", ctypes.c_uint64),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("dtype", ctypes.c_uint8 * 4),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
    ]


def tensor(capsule: Any) -> Tensor:
    get = ctypes.PyDLL(None).PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    found = Tensor.from_address(get(capsule, b"dltensor"))
    found.capsule = capsule  # which keeps it alive
    return found


@pytest.mark.parametrize(("device", "away"), [(None, 0), ((1, 0), 0), ((3, 0), 0), ((2, 0), AWAY)])
def test_dlpack_gives_the_device_that_was_asked_for_its_own_pointer(
    memory: LinearMemory, device: tuple[int, int] | None, away: int
) -> None:
    map_it(memory)
    view = memory.view((4, 6), "bf16", offset=64)[:, ::3]
    assert view.__dlpack_device__() == (1, 0)
    for copy in (None, False):
        capsule = view.__dlpack__(dl_device=device, copy=copy)
        found = tensor(capsule)
        assert tuple(found.device) == (device or (1, 0))
        assert found.data == view.address + away
        assert (found.ndim, found.shape[:2], found.strides[:2]) == (2, [4, 2], [6, 3])
        assert list(found.dtype) == [4, 16, 1, 0]
        assert view.__dlpack__(dl_device=device, copy=copy, max_version=(1, 0))


def test_what_the_gpu_does_not_reach_is_refused_and_nothing_is_copied(memory: LinearMemory) -> None:
    view, before = memory.view(4, "f32"), live_exports()
    for device in ((2, 0), (3, 0)):
        for copy in (None, False):
            with pytest.raises(BufferError, match="CUDA has not mapped"):
                view.__dlpack__(dl_device=device, copy=copy)
    map_it(memory)
    with pytest.raises(CopyRefusedError, match=r"\(2, 1\).* ask for \(2, 0\)"):
        view.__dlpack__(dl_device=(2, 1))
    for device in ((2, 0), (3, 0)):
        with pytest.raises(CopyRefusedError, match="copies are made in plain host memory"):
            view.__dlpack__(dl_device=device, copy=True)
    with pytest.raises(CopyRefusedError, match="would need a copy"):
        view.__dlpack__(dl_device=(8, 0))
    assert live_exports() == before


def test_a_view_states_the_gpu_to_who_looks_before_asking(memory: LinearMemory) -> None:
    map_it(memory, number=1)
    view = memory.view((4, 6), "bf16", offset=64)[:, ::3]
    stated = view.on_gpu()
    assert stated.__dlpack_device__() == (2, 1)
    for asked in (None, (2, 1)):
        found = tensor(stated.__dlpack__(stream=1, dl_device=asked, copy=False))
        assert (tuple(found.device), found.data) == ((2, 1), view.address + AWAY)
    assert tuple(tensor(stated.__dlpack__(dl_device=(1, 0))).device) == (1, 0)
    with pytest.raises(CopyRefusedError):
        stated.__dlpack__(copy=True)
    floats = memory.view(4, "f32")
    assert floats.on_gpu().__cuda_array_interface__ == floats.__cuda_array_interface__
    mapped.remove(memory.address)
    with pytest.raises(CopyRefusedError, match="does so no more"):
        stated.__dlpack__()


def test_a_stream_makes_sense_on_a_gpu_only(memory: LinearMemory) -> None:
    map_it(memory)
    view = memory.view(4, "f32")
    assert view.__dlpack__(dl_device=(2, 0), stream=1)
    for device in (None, (3, 0)):
        with pytest.raises(UsageError, match="no streams"):
            view.__dlpack__(dl_device=device, stream=1)


def test_what_was_handed_to_a_gpu_keeps_the_pages_mapped() -> None:
    memory = LinearMemory(SIZE, reserve=SIZE, guard=0)
    map_it(memory)
    view = memory.view(4, "f32")
    view[:] = 7
    capsule = view.__dlpack__(dl_device=(2, 0))
    address = view.address
    mapped.remove(memory.address)
    memory.close()
    del view, memory
    gc.collect()
    assert np.frombuffer((ctypes.c_float * 4).from_address(address), np.float32).tolist() == [7] * 4
    del capsule


# What is over


@pytest.mark.parametrize(
    "use",
    [
        lambda view: view.__cuda_array_interface__,
        lambda view: view.__dlpack__(dl_device=(2, 0)),
        lambda view: view.__dlpack__(dl_device=(3, 0)),
        lambda view: view.on_gpu(),
    ],
)
def test_no_stale_pointer_is_handed_out(memory: LinearMemory, use: Any) -> None:
    map_it(memory)
    view = memory.view(4, "f32")
    use(view)
    memory.grow(2 * SIZE)
    with pytest.raises(StaleViewError, match="refresh"):
        use(view)
    use(view.refresh())
    mapped.remove(memory.address)  # as a device does when it is closed, or lost
    with pytest.raises((AttributeError, BufferError), match="does so no more"):
        use(view.refresh())
    map_it(memory)
    view = view.refresh()
    memory.close()
    with pytest.raises(ClosedError):
        use(view)
    assert isinstance(view, TensorView)
