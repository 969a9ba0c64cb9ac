"""Views of a guest's memory on a CUDA device: what they offer while it is open, and what afterwards.

On a GPU, or on `tests/device/emulated_cuda/libcuda.cpp` through tests/device/test_cuda_driver.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nocopy.device.protocol import Device, Mode
from nocopy.errors import CopyRefusedError, StaleViewError
from nocopy.interfaces.host import DeviceGuest
from nocopy.memory import LinearMemory, TensorView
from nocopy.session.language import LanguageModel
from tests.device.conftest import open_or_skip
from tests.interfaces import passthrough
from tests.interfaces.passthrough import submit
from tests.interfaces.test_submit import doubling


@pytest.fixture
def cuda() -> Iterator[Device]:
    device = open_or_skip("cuda")
    if device.info.mode is Mode.STAGED:
        pytest.skip("this GPU cannot share host pages")
    yield device
    device.close()


def offers(view: TensorView) -> bool:
    """Whether it offers itself to CUDA libraries; all of its ways say the same."""
    found = hasattr(view, "__cuda_array_interface__")
    for device in ((2, 0), (3, 0)):
        if found:
            assert view.__dlpack__(dl_device=device)
        else:
            with pytest.raises(CopyRefusedError, match="does so no more"):
                view.__dlpack__(dl_device=device)
    return found


def test_a_guests_tensor_is_offered_where_the_device_sees_it(cuda: Device) -> None:
    with DeviceGuest(passthrough.text(pages=4), device=cuda) as guest:
        view = guest.memory.view((8, 32), "f32", 65536)
        assert guest.pages is not None
        away = guest.pages.device_address - guest.memory.address
        assert view.__cuda_array_interface__["data"] == (view.address + away, False)
        assert offers(view)
        view[:] = 1
        assert submit(guest, doubling(256, 65536)) == 0
        assert np.all(view.numpy() == 2)
        assert guest.ledger.copied == 0


def test_growth_is_followed_and_the_old_view_says_so(cuda: Device) -> None:
    with DeviceGuest(passthrough.text(pages=2), device=cuda) as guest:
        view = guest.memory.view(16, "f32")
        assert guest.call("grow", 3) == 2
        with pytest.raises(StaleViewError):
            _ = view.__cuda_array_interface__
        assert offers(view.refresh())
        assert offers(guest.memory.view((4, 16384), "f32", 65536))


def test_a_guest_that_is_closed_offers_nothing(cuda: Device) -> None:
    memory = LinearMemory(65536, reserve=65536, guard=0)
    view = memory.view(16, "f32")
    assert not offers(view)
    pages = cuda.share(memory.address, memory.size)
    assert offers(view)
    pages.close()
    assert not offers(view)
    pages = cuda.share(memory.address, memory.size)
    assert offers(view)
    cuda.close()
    assert not offers(view)
    memory.close()


def test_the_logits_of_a_session_are_offered(cuda: Device, tiny_gguf: Path) -> None:
    with LanguageModel(tiny_gguf, device=cuda) as model:
        session = model.session(context=32)
        place = session.region.logits
        logits = session.memory.view(place.shape, place.dtype, place.offset)
        assert offers(logits)
        assert np.array_equal(logits.numpy(), session.logits)
    assert session.memory.closed
