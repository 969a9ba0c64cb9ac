"""Guests that go on with another device: after the loss of theirs, or because the host wants them there."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from nocopy.device.discovery import open_device
from nocopy.device.protocol import Device
from nocopy.device.reference import HostPages
from nocopy.errors import (
    ClosedError,
    CopyRefusedError,
    DeviceError,
    DeviceLostError,
    DeviceUnavailableError,
    UsageError,
)
from nocopy.interfaces.host import DeviceGuest
from nocopy.memory.dtype import DType
from nocopy.tape import Space, TapeBuilder, Tensor
from nocopy.wasm import Limits
from tests.device.losable import LosableDevice
from tests.interfaces import passthrough
from tests.interfaces.model_guest import ModelGuest
from tests.interfaces.passthrough import submit
from tests.interfaces.test_submit import DATA, doubling
from tests.models.tiny import write_tiny

PROMPT = [0, 72, 101, 108, 108, 111]


class Separate(LosableDevice):
    """Reaches no host pages."""

    def share(self, *args: object, **kw: object) -> HostPages:
        raise CopyRefusedError("sharing was asked for; this device could only copy")


@pytest.fixture
def gpu() -> LosableDevice:
    return LosableDevice()


@pytest.fixture(params=["reference", "cpu"])
def other(request: pytest.FixtureRequest) -> Iterator[Device]:
    device = open_device(request.param)
    yield device
    device.close()


def keep_in_scratch(value: float) -> TapeBuilder:
    tape = TapeBuilder()
    tape.fill(Tensor(Space.SCRATCH, 64, (4,), DType.F32), value)
    return tape


def fetch_from_scratch() -> TapeBuilder:
    tape = TapeBuilder()
    tape.copy(Tensor(Space.GUEST, DATA, (4,), DType.F32), Tensor(Space.SCRATCH, 64, (4,), DType.F32))
    return tape


def test_a_guest_outlives_its_device(gpu: LosableDevice, other: Device) -> None:
    with DeviceGuest(passthrough.text(pages=2), device=gpu) as guest:
        x, address = guest.memory.view(16, "f32", DATA), guest.memory.address
        x[:] = 1
        assert submit(guest, doubling()) == 0
        gpu.lose()
        assert submit(guest, doubling()) == DeviceLostError.code
        assert submit(guest, doubling()) == ClosedError.code
        assert guest.memory.read(0, 16) is not None
        x[:] = np.arange(16)
        moved = guest.move(other)
        assert (moved.lost, moved.reread, moved.scratch) == (True, {}, 0)
        assert guest.device is other
        assert guest.memory.address == address
        assert submit(guest, doubling()) == 0
        assert np.array_equal(x.numpy()[:4], 2 * np.arange(4))
        assert guest.call("grow", 1) == 2
        assert submit(guest, doubling()) == 0
    gc.collect()


def test_native_submit_of_the_old_device_is_not_asked_again(gpu: LosableDevice) -> None:
    device = open_device("cpu")
    with DeviceGuest(passthrough.text(pages=2), device=device) as guest:
        x = guest.memory.view(4, "f32", DATA)
        for _ in range(3):
            assert submit(guest, doubling()) == 0
        assert not guest.move(gpu).lost
        device.close()
        x[:] = 1
        for _ in range(3):
            assert submit(guest, doubling()) == 0
        assert gpu.plays == 3
        assert np.all(x.numpy() == 8)


def test_scratch_moves_along_and_is_zero_after_a_loss(gpu: LosableDevice, other: Device) -> None:
    for loses in (False, True):
        device = LosableDevice()
        with DeviceGuest(passthrough.text(pages=2), device=device) as guest:
            assert submit(guest, keep_in_scratch(3)) == 0
            if loses:
                device.lose()
            moved = guest.move(other)
            assert (moved.lost, moved.scratch) == ((True, 1 << 20) if loses else (False, 0))
            assert submit(guest, fetch_from_scratch()) == 0
            assert guest.memory.view(4, "f32", DATA).numpy().tolist() == [0 if loses else 3] * 4


@pytest.mark.parametrize("loses", [False, True])
def test_sessions_go_on_under_their_handles(
    tiny_gguf: Path, gpu: LosableDevice, other: Device, loses: bool
) -> None:
    with ModelGuest("reference", tiny_gguf) as undisturbed:
        session = undisturbed.session(undisturbed.open())
        undisturbed.append(session, PROMPT)
        wanted = undisturbed.generate(session, 12)
    with ModelGuest(gpu, tiny_gguf, limits=Limits(deadline=30)) as g:
        model = g.open()
        session, empty = g.session(model, context=64), g.session(model, context=64)
        g.append(session, PROMPT[:4])
        g.guest._compute.open_sessions().flush()
        g.append(session, PROMPT[4:])
        if loses:
            gpu.lose()
            assert g.call("session_append", session, *g.tokens([1])) == DeviceLostError.code
        moved = g.guest.move(other)
        assert moved.lost == loses
        assert moved.reread == {session: len(PROMPT) - 4 if loses else 0, empty: 0}
        assert g.ok("session_length", session) == len(PROMPT)
        assert g.generate(session, 12) == wanted
        assert g.info(model)["architecture"] == "llama"
        g.ok("session_close", session)
        g.ok("session_close", empty)
        g.ok("model_close", model)


def test_the_deadline_of_a_call_that_is_over_binds_nobody(
    tiny_gguf: Path, gpu: LosableDevice, tmp_path: Path
) -> None:
    with ModelGuest(gpu, tiny_gguf, limits=Limits(deadline=30)) as g:
        session = g.session(g.open())
        g.append(session, PROMPT)
        for go_on in (lambda: g.guest.freeze(tmp_path / "g"), lambda: g.guest.move("reference")):
            g.guest._compute.open_sessions().until = time.monotonic() - 1
            go_on()
        g.append(session, [1])


def test_guests_that_share_a_device_move_one_by_one(tiny_gguf: Path, gpu: LosableDevice) -> None:
    guests = [ModelGuest(gpu, tiny_gguf) for _ in range(2)]
    sessions = [g.session(g.open()) for g in guests]
    for g, session in zip(guests, sessions, strict=True):
        g.append(session, PROMPT)
    gpu.lose()
    assert guests[0].call("session_append", sessions[0], *guests[0].tokens([1])) == DeviceLostError.code
    with closing(open_device("reference")) as other:
        for g, session in zip(guests, sessions, strict=True):
            assert g.guest.move(other).reread == {session: len(PROMPT)}
        first, second = (g.generate(s, 6) for g, s in zip(guests, sessions, strict=True))
        assert first == second
        for g in guests:
            g.guest.close()


def test_a_move_that_fails_leaves_the_guest_to_be_moved_again(tiny_gguf: Path, gpu: LosableDevice) -> None:
    with ModelGuest(gpu, tiny_gguf) as g:
        session = g.session(g.open())
        g.append(session, PROMPT)
        assert submit(g.guest, keep_in_scratch(3)) == 0
        with pytest.raises(DeviceUnavailableError):
            g.guest.move("metal" if not metal() else "vulkan")
        g.append(session, [1])
        for bad in (LosableDevice(1000), Separate(), LosableDevice(1000)):
            with pytest.raises((DeviceError, CopyRefusedError), match=r"were asked for|could only copy"):
                g.guest.move(bad)
            assert submit(g.guest, doubling()) == ClosedError.code
            assert "not attached" in g.error
        moved = g.guest.move("reference")
        assert (moved.lost, moved.reread, moved.scratch) == (False, {session: 0}, 0)
        g.append(session, [2])
        assert submit(g.guest, fetch_from_scratch()) == 0
        assert g.memory.view(4, "f32", DATA).numpy().tolist() == [3] * 4


def test_a_model_whose_file_changed_is_not_taken_for_the_same(tmp_path: Path, gpu: LosableDevice) -> None:
    path = write_tiny(tmp_path / "model.gguf")
    with ModelGuest(gpu, path) as g:
        g.append(g.session(g.open()), PROMPT)
        gpu.lose()
        path.unlink()
        write_tiny(path, llama__attention__layer_norm_rms_epsilon=1e-3)
        for _ in range(2):
            with pytest.raises(UsageError, match="another one now"):
                g.guest.move("reference")


def test_a_guest_that_is_closed_or_running_does_not_move(gpu: LosableDevice) -> None:
    guest = DeviceGuest(passthrough.text(), device=gpu)
    guest.close()
    with pytest.raises(ClosedError):
        guest.move("reference")


def metal() -> bool:
    try:
        open_device("metal").close()
    except DeviceUnavailableError:
        return False
    return True
