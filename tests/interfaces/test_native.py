"""On the cpu device, a tape that was accepted before is played by native code, without Python."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from nocopy import native
from nocopy.device.protocol import Device
from nocopy.interfaces.host import DeviceGuest
from nocopy.interfaces.native import NativeSubmit
from nocopy.wasm import Limits
from tests.device.conftest import open_or_skip
from tests.interfaces import passthrough
from tests.interfaces.passthrough import submit
from tests.interfaces.test_submit import DATA, doubling, reads_scratch, scratch_tape


@pytest.fixture
def device() -> Iterator[Device]:
    device = open_or_skip("cpu")
    yield device
    device.close()


@pytest.fixture(params=[False, True], ids=["wasm32", "memory64"])
def guest(request: pytest.FixtureRequest, device: Device) -> Iterator[DeviceGuest]:
    with DeviceGuest(passthrough.text(memory64=request.param, pages=2), device=device) as guest:
        yield guest


def native_side(guest: DeviceGuest) -> NativeSubmit:
    return guest._compute.on_accepted.__self__


def hits(guest: DeviceGuest) -> int:
    return native.library().nocopy_host_hits(native_side(guest).host)


def test_a_tape_that_comes_again_does_not_reach_python(
    guest: DeviceGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = guest.memory.view(16, "f32", DATA)
    x[:] = 1
    assert submit(guest, doubling()) == 0
    monkeypatch.setattr(guest._compute, "submit", None)
    for _ in range(9):
        assert submit(guest, doubling()) == 0
    assert hits(guest) == 9
    assert np.all(x.numpy() == 1024)


def test_changed_records_reach_the_validator(guest: DeviceGuest) -> None:
    assert submit(guest, doubling()) == 0
    for position in range(256):
        changed = bytearray(bytes(doubling()))
        changed[position] ^= 0x80
        code = submit(guest, bytes(changed))
        assert hits(guest) == 0, position
        assert code <= 0
    assert submit(guest, doubling()) == 0
    assert hits(guest) == 1


def test_scratch_that_moved_is_where_the_native_side_plays(guest: DeviceGuest) -> None:
    x = guest.memory.view(1, "f32", DATA)
    for size in (2**12, 2**22, 2**24):
        for _ in range(2):
            assert submit(guest, scratch_tape(size, size)) == 0
            assert submit(guest, reads_scratch(size - 4)) == 0
            assert x.numpy()[0] == size
    assert hits(guest) == 6


def test_scratch_that_the_host_moves_is_not_played_on(guest: DeviceGuest) -> None:
    x = guest.memory.view(1, "f32", DATA)
    for _ in range(2):
        assert submit(guest, scratch_tape(4096, 5)) == 0
        assert submit(guest, reads_scratch(4092)) == 0
    guest.play(scratch_tape(2**24))
    x[:] = 0
    for _ in range(2):
        assert submit(guest, reads_scratch(4092)) == 0
    assert x.numpy()[0] == 5
    assert hits(guest) == 3


def test_growth_keeps_what_was_accepted(guest: DeviceGuest) -> None:
    assert submit(guest, doubling()) == 0
    guest.call("grow", 20)
    assert submit(guest, doubling()) == 0
    assert hits(guest) == 1


def test_a_deadline_is_kept_exactly_so_python_plays(device: Device) -> None:
    with DeviceGuest(passthrough.text(), device=device, limits=Limits(deadline=5.0)) as guest:
        assert submit(guest, doubling()) == 0
        assert submit(guest, doubling()) == 0
        assert not hasattr(guest._compute.on_accepted, "__self__")


def test_a_closed_device_is_not_played_on(guest: DeviceGuest, device: Device) -> None:
    assert submit(guest, doubling()) == 0
    assert submit(guest, doubling()) == 0
    device.close()
    assert submit(guest, doubling()) < 0
    assert "closed" in guest.last_error
    assert hits(guest) == 1


def test_other_guests_have_caches_of_their_own(guest: DeviceGuest, device: Device) -> None:
    """The same records name other bytes in another guest."""
    with DeviceGuest(passthrough.text(pages=2), device=device) as other:
        x, y = guest.memory.view(16, "f32", DATA), other.memory.view(16, "f32", DATA)
        x[:], y[:] = 1, 100
        for _ in range(3):
            assert submit(guest, doubling()) == 0
        for _ in range(2):
            assert submit(other, doubling()) == 0
        assert (x.numpy()[0], y.numpy()[0]) == (8, 400)
        assert (hits(guest), hits(other)) == (2, 1)
