"""CuPy and PyTorch compute on a guest's memory in place. On a GPU with these libraries; elsewhere skipped."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from nocopy.device.protocol import Device, Mode
from nocopy.interfaces.host import DeviceGuest
from nocopy.memory import TensorView
from tests.device.conftest import open_or_skip
from tests.interfaces import passthrough
from tests.interfaces.passthrough import submit
from tests.interfaces.test_submit import doubling

AT, N = 65536, 3 << 14


@pytest.fixture
def guest() -> Iterator[DeviceGuest]:
    device: Device = open_or_skip("cuda")
    if device.info.mode is not Mode.SAME_POINTER:
        pytest.skip("this GPU does not see host pages at the host's address")
    with DeviceGuest(passthrough.text(pages=8), device=device) as guest:
        yield guest
    device.close()


@pytest.fixture
def cupy(guest: DeviceGuest) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pytest.importorskip("cupy")
        if not found.cuda.is_available():
            pytest.skip("CuPy sees no GPU")
    return found


@pytest.fixture
def torch(guest: DeviceGuest) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pytest.importorskip("torch")
        if not found.cuda.is_available():
            pytest.skip("PyTorch sees no GPU")
    return found


def numbers(guest: DeviceGuest, dtype: str = "f32") -> TensorView:
    view = guest.memory.view(N, dtype, AT)
    view[:] = (np.arange(N) % 64).astype(view.dtype.numpy)
    return view


def check(guest: DeviceGuest, view: TensorView, factor: int) -> None:
    """The guest sees what was computed, computes on it itself, and nothing was copied for any of it."""
    wanted = np.arange(N) % 64 * factor
    assert np.array_equal(view.numpy().astype(np.int64), wanted)
    if view.dtype.name == "F32":
        assert submit(guest, doubling(N, AT)) == 0
        assert np.array_equal(view.numpy().astype(np.int64), 2 * wanted)
    assert guest.ledger.copied == 0
    assert guest.ledger.shared == guest.memory.size


@pytest.mark.parametrize("dtype", ["f32", "f16", "i32", "u8"])
def test_cupy_computes_in_place(guest: DeviceGuest, cupy: Any, dtype: str) -> None:
    view = numbers(guest, dtype)
    array = cupy.asarray(view)
    assert array.data.ptr == view.address
    assert array.dtype == view.numpy().dtype
    array *= 3
    array[...] = array.reshape(-1, 64)[::-1].reshape(-1)  # every row is the same
    cupy.cuda.get_current_stream().synchronize()
    check(guest, view, 3)


def test_cupy_sees_strides(guest: DeviceGuest, cupy: Any) -> None:
    view = numbers(guest).reshape(-1, 64)
    part = view[::2, 1::3]
    array = cupy.asarray(part)
    assert (array.data.ptr, array.strides) == (part.address, part.numpy().strides)
    assert np.array_equal(cupy.asnumpy(array.sum(axis=0)), part.numpy().sum(axis=0))
    array[...] = 0
    cupy.cuda.get_current_stream().synchronize()
    wanted = np.tile(np.arange(64, dtype=np.float32), (N // 64, 1))
    wanted[::2, 1::3] = 0
    assert np.array_equal(view.numpy(), wanted)


@pytest.mark.parametrize("dtype", ["f32", "f16", "i32", "u8"])
def test_torch_takes_the_cuda_array_interface_in_place(guest: DeviceGuest, torch: Any, dtype: str) -> None:
    view = numbers(guest, dtype)
    tensor = torch.as_tensor(view, device="cuda")
    assert tensor.data_ptr() == view.address
    assert tensor.device.type == "cuda"
    tensor.mul_(3)
    torch.cuda.synchronize()
    check(guest, view, 3)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "i32", "u8"])
def test_torch_takes_dlpack_in_place_on_the_gpu(guest: DeviceGuest, torch: Any, dtype: str) -> None:
    view = numbers(guest, dtype)
    tensor = torch.from_dlpack(view.on_gpu())
    assert tensor.data_ptr() == view.address
    assert tensor.device == torch.device("cuda", 0)
    tensor.mul_(3)
    torch.cuda.synchronize()
    check(guest, view, 3)


def test_torch_asks_for_the_gpu_by_name(guest: DeviceGuest, torch: Any) -> None:
    view = numbers(guest, "bf16")
    tensor = torch.from_dlpack(view.on_gpu(), device="cuda:0", copy=False)
    assert (tensor.data_ptr(), tensor.device.type) == (view.address, "cuda")
    tensor.mul_(3)
    torch.cuda.synchronize()
    check(guest, view, 3)


def test_cupy_takes_dlpack_in_place(guest: DeviceGuest, cupy: Any) -> None:
    view = numbers(guest)
    array = cupy.from_dlpack(view.on_gpu())
    assert array.data.ptr == view.address
    array *= 3
    cupy.cuda.get_current_stream().synchronize()
    check(guest, view, 3)


def test_torch_takes_the_cpu_unless_asked(guest: DeviceGuest, torch: Any) -> None:
    view = numbers(guest)
    tensor = torch.from_dlpack(view)
    assert (tensor.data_ptr(), tensor.device.type) == (view.address, "cpu")
    tensor.mul_(3)
    check(guest, view, 3)


def test_a_product_of_torch_on_the_gpu_lands_in_the_guest(guest: DeviceGuest, torch: Any) -> None:
    a, b, out = (guest.memory.view((64, 64), "f32", AT + 16384 * i) for i in range(3))
    a[:], b[:] = np.arange(4096).reshape(64, 64) % 7, np.arange(4096).reshape(64, 64) % 5
    on_gpu = [torch.as_tensor(each, device="cuda") for each in (a, b, out)]
    torch.matmul(on_gpu[0], on_gpu[1], out=on_gpu[2])
    torch.cuda.synchronize()
    assert np.array_equal(out.numpy(), a.numpy() @ b.numpy())
    assert guest.ledger.copied == 0


def test_both_libraries_and_the_guest_share_one_tensor(guest: DeviceGuest, torch: Any, cupy: Any) -> None:
    view = numbers(guest)
    first, second = cupy.asarray(view), torch.as_tensor(view, device="cuda")
    first += 1
    cupy.cuda.get_current_stream().synchronize()
    second.mul_(2)
    torch.cuda.synchronize()
    assert submit(guest, doubling(N, AT)) == 0
    first -= 4
    cupy.cuda.get_current_stream().synchronize()
    assert np.array_equal(view.numpy().astype(np.int64), np.arange(N) % 64 * 4)
    assert guest.ledger.copied == 0
