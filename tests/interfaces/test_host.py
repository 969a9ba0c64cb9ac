"""A guest and its device, from the host's side: pointers, lifetimes, threads."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import numpy as np
import pytest

from nocopy.device.protocol import Device, Mode
from nocopy.device.reference import ReferenceDevice
from nocopy.errors import ClosedError, DeviceError, DeviceLostError, TapeError, TrapError, UsageError
from nocopy.interfaces.host import DeviceGuest
from nocopy.memory.ledger import Ledger
from nocopy.tape import Space, TapeBuilder, Tensor
from nocopy.wasm import HostFunction
from nocopy.wasm.memory_creator import alive
from tests.device.conftest import open_or_skip
from tests.interfaces import passthrough
from tests.interfaces.conftest import Start
from tests.interfaces.passthrough import submit
from tests.interfaces.test_submit import DATA, doubling


def test_the_pointers_are_one(start: Start) -> None:
    guest = start(pages=4)
    assert guest.pages is not None
    assert guest.pages.address == guest.memory.address == guest.wasm_address
    assert guest.pages.nbytes == guest.memory.size
    if guest.device.info.mode is Mode.SAME_POINTER:
        assert guest.pages.device_address == guest.memory.address


def test_nothing_is_copied(start: Start) -> None:
    guest = start(pages=65)
    guest.memory.view(2**20, "f32", 65536)[:] = 1
    assert submit(guest, doubling(2**20, 65536)) == 0
    assert np.all(guest.memory.view(2**20, "f32", 65536).numpy() == 2)
    assert guest.ledger.shared == guest.memory.size
    assert guest.ledger.copied == 0 or guest.device.info.mode is Mode.STAGED


def test_the_host_plays_on_views_of_the_guest(start: Start) -> None:
    guest = start()
    x, y = guest.memory.view((4, 4), "f32", DATA), guest.memory.view((4, 4), "f32", 2 * DATA)
    x[:] = np.arange(16).reshape(4, 4)
    tape = TapeBuilder()
    tape.matmul(y, x, x.T)
    guest.play(tape)
    assert np.array_equal(y.numpy(), x.numpy() @ x.numpy().T)
    bad = TapeBuilder()
    bad.fill(Tensor(Space.GUEST, 65536, (1,), x.dtype), 1)
    with pytest.raises(TapeError):
        guest.play(bad)


def test_a_ledger_of_the_callers_is_used() -> None:
    ledger = Ledger()
    with DeviceGuest(passthrough.text(), device="reference", ledger=ledger) as guest:
        assert guest.ledger is ledger
        assert ledger.shared == 65536


def test_closing_detaches_and_forgets(start: Start) -> None:
    guest = start()
    memory, device = guest.memory, guest.device
    assert memory.holders == ("a running guest", f"the {device.info.name} device")
    submit(guest, doubling())
    guest.close()
    guest.close()
    assert memory.closed
    for call in (lambda: guest.call("version"), lambda: guest.pages, lambda: guest.play(doubling())):
        with pytest.raises(ClosedError):
            call()
    again = start()
    assert submit(again, doubling()) == 0


def test_an_array_outlives_the_guest(start: Start) -> None:
    guest = start()
    array = guest.memory.view(16, "f32", DATA).numpy()
    array[:] = 3
    submit(guest, doubling())
    guest.close()
    assert np.all(array == 6)


def test_a_device_by_name_is_closed_with_the_guest(start: Start) -> None:
    name = start().device.info.name
    guest = DeviceGuest(passthrough.text(), device=name, allow_copy=True)
    device = guest.device
    guest.close()
    with pytest.raises((ClosedError, DeviceError)):
        device.play(device.compile(TapeBuilder().build({}), {}))


def test_a_borrowed_device_stays_open(start: Start) -> None:
    one, other = start(), start()
    one.close()
    assert submit(other, doubling()) == 0


def test_a_guest_that_traps_while_starting_lets_go_of_everything(device: Device) -> None:
    before = alive()
    text = '(module (func $s unreachable) (memory (export "memory") 1) (start $s))'
    for _ in range(3):
        with pytest.raises(TrapError):
            DeviceGuest(text, device=device)
    assert alive() == before
    with DeviceGuest(passthrough.text(), device=device) as guest:
        assert submit(guest, doubling()) == 0


def test_a_guest_cannot_be_closed_from_its_own_call() -> None:
    refusals: list[UsageError] = []

    def close() -> None:
        try:
            guest.close()
        except UsageError as error:
            refusals.append(error)

    text = (
        passthrough.text()[:-1].replace("(module ", '(module (import "env" "close" (func $close)) ', 1)
        + '(func (export "end") (call $close)))'
    )
    guest = DeviceGuest(text, device="reference", imports={("env", "close"): HostFunction(close)})
    guest.call("end")
    assert len(refusals) == 1
    assert submit(guest, doubling()) == 0
    guest.close()


def mapped(address: int) -> bool:
    """True if something is mapped at an address of this process."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= address < end:
            return True
    return False


class Clinging(ReferenceDevice):
    """A device that does not let go of pages."""

    def share(self, *args: object, **kw: object) -> object:
        pages = super().share(*args, **kw)

        def close() -> None:
            raise DeviceError("the driver refuses to let go of the pages")

        pages.close = close
        return pages


def test_pages_that_a_device_does_not_let_go_of_stay_mapped() -> None:
    guest = DeviceGuest(passthrough.text(), device=Clinging())
    memory = guest.memory
    address = memory.address
    with pytest.raises(DeviceError, match="let go"):
        guest.close()
    assert guest.closed
    guest.close()
    del guest, memory
    gc.collect()
    assert mapped(address)


def test_the_host_cannot_play_while_another_thread_is_inside() -> None:
    refusals: list[Exception] = []

    class Busy(ReferenceDevice):
        def play(self, program: object, *, timeout: float | None = None, then: object = None) -> None:
            thread = threading.Thread(target=host_plays)
            thread.start()
            thread.join()
            super().play(program, timeout=timeout)

    def host_plays() -> None:
        try:
            guest.play(doubling())
        except UsageError as error:
            refusals.append(error)

    with DeviceGuest(passthrough.text(), device=Busy()) as guest:
        assert submit(guest, doubling()) == 0
    assert "another thread" in str(refusals)


class Losing(ReferenceDevice):
    """A device that gets lost while it plays."""

    def play(self, program: object, *, timeout: float | None = None, then: object = None) -> None:
        raise DeviceLostError("the driver has reset the device")


def test_pages_that_a_lost_device_may_still_write_stay_mapped() -> None:
    device = Losing()
    guest, other = (DeviceGuest(passthrough.text(), device=device) for _ in range(2))
    address = guest.memory.address
    assert submit(guest, doubling()) == DeviceLostError.code
    assert guest.last_error == "the driver has reset the device"
    with pytest.warns(ResourceWarning, match="stays mapped"):
        guest.close()
    del guest
    gc.collect()
    assert mapped(address)
    other.close()


def test_guests_on_other_threads_take_turns(start: Start) -> None:
    guests = [start(pages=8) for _ in range(4)]
    failures: list[BaseException] = []

    def work(guest: DeviceGuest, seed: int) -> None:
        try:
            x = guest.memory.view(4096, "f32", 65536)
            for i in range(25):
                x[:] = seed + i
                assert submit(guest, doubling(4096, 65536)) == 0
                assert np.all(x.numpy() == 2 * (seed + i))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(g, 100 * i)) for i, g in enumerate(guests)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_guest_dropped_without_closing_is_taken_off_its_device(device: Device) -> None:
    """Before its pages are unmapped: a device must never hold pages that are gone."""
    for _ in range(3):
        guest = DeviceGuest(passthrough.text(), device=device)
        assert submit(guest, doubling()) == 0
        grip, address = guest._compute.attachment.grip, guest.memory.address
        assert mapped(address)
        del guest
        gc.collect()
        assert grip.closed
        del grip
        gc.collect()
        assert not mapped(address)


class Collecting(ReferenceDevice):
    """A device during whose play the garbage collector runs."""

    def play(self, program: object, *, timeout: float | None = None, then: object = None) -> None:
        gc.collect()
        super().play(program, timeout=timeout)


def test_a_guest_may_be_collected_while_its_device_is_busy() -> None:
    device = Collecting()
    with DeviceGuest(passthrough.text(), device=device) as guest:
        dropped = DeviceGuest(passthrough.text(), device=device)
        grip = dropped._compute.attachment.grip
        del dropped
        assert submit(guest, doubling()) == 0
        assert grip.closed


def test_a_device_that_closes_under_a_guest_is_an_error(start: Start) -> None:
    device = open_or_skip(start().device.info.name)
    with DeviceGuest(passthrough.text(), device=device) as guest:
        device.close()
        with pytest.raises((ClosedError, DeviceError)):
            guest.play(doubling())
