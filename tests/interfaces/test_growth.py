"""A device follows a memory that grows, or memory.grow gives -1 and the reason can be read."""

from __future__ import annotations

import numpy as np
import pytest

from nocopy.device.reference import HostPages, ReferenceDevice
from nocopy.errors import DeviceError, MemoryLimitError, TapeError
from nocopy.interfaces.host import DeviceGuest
from nocopy.memory.dtype import DType
from nocopy.tape import Space, TapeBuilder, Tensor
from nocopy.wasm import Limits
from tests.interfaces import passthrough
from tests.interfaces.conftest import Start
from tests.interfaces.passthrough import last_error, submit
from tests.interfaces.test_submit import DATA, doubling

PAGE = 65536


def signed(value: int) -> int:
    return value - 2**32 if value >= 2**31 else value


def test_tapes_reach_what_was_added(start: Start) -> None:
    guest = start()
    far = doubling(offset=40 * PAGE)
    assert submit(guest, far) == TapeError.code
    assert guest.call("grow", 63) == 1
    x = guest.memory.view(16, "f32", 40 * PAGE)
    x[:] = 3
    assert submit(guest, far) == 0
    assert np.all(x.numpy() == 6)


def test_tapes_accepted_before_still_play(start: Start) -> None:
    guest = start()
    for i in range(6):
        x = guest.memory.view(16, "f32", DATA)
        x[:] = 1
        assert submit(guest, doubling()) == 0
        assert np.all(x.numpy() == 2)
        assert guest.call("grow", 1 + 8 * i) > 0
    assert guest.ledger.copied == 0 or guest.device.info.mode == "staged"


def test_the_ledger_counts_each_byte_once(start: Start) -> None:
    guest = start(pages=2)
    guest.call("grow", 3)
    guest.call("grow", 1)
    assert guest.ledger.shared == 6 * PAGE == guest.memory.size


def test_a_memory_may_start_empty(start: Start) -> None:
    guest = start(pages=0)
    assert guest.pages is None
    assert guest.call("submit", 0, 0) == 0
    assert guest.call("grow", 1) == 0
    x = guest.memory.view(16, "f32", DATA)
    x[:] = 1
    assert submit(guest, doubling()) == 0
    assert np.all(x.numpy() == 2)


def test_growth_beyond_a_limit_changes_nothing(start: Start) -> None:
    guest = start(limits=Limits(memory=2 * PAGE))
    assert guest.call("grow", 1) == 1
    assert guest.call("grow", 1) == -1
    assert guest.pages is not None
    assert guest.pages.nbytes == guest.memory.size == 2 * PAGE
    assert submit(guest, doubling()) == 0


def test_the_host_may_grow_the_guest(start: Start) -> None:
    guest = start()
    guest.memory.grow(4 * PAGE)
    assert guest.pages is not None
    assert guest.pages.nbytes == 4 * PAGE
    assert submit(guest, doubling(offset=3 * PAGE)) == 0


class Stubborn(ReferenceDevice):
    """A device that cannot import more than two pages."""

    def share(self, address: int, nbytes: int, **kw: object) -> HostPages:
        pages = super().share(address, nbytes)

        class Small(HostPages):
            def grow(self, nbytes: int) -> None:
                if nbytes > 2 * PAGE:
                    raise DeviceError(f"importing {nbytes} bytes was asked for; this device takes {2 * PAGE}")
                super().grow(nbytes)

        return Small(pages.address, pages.nbytes)


@pytest.fixture
def stubborn() -> DeviceGuest:
    with DeviceGuest(passthrough.text(), device=Stubborn()) as guest:
        yield guest


def test_growth_that_the_device_cannot_follow_is_refused(stubborn: DeviceGuest) -> None:
    assert stubborn.call("grow", 1) == 1
    assert stubborn.call("grow", 1) == -1
    assert stubborn.memory.size == 2 * PAGE
    assert last_error(stubborn) == f"importing {3 * PAGE} bytes was asked for; this device takes {2 * PAGE}"
    assert submit(stubborn, doubling()) == 0


def test_the_host_is_told_why_growth_is_refused(stubborn: DeviceGuest) -> None:
    with pytest.raises(MemoryLimitError):
        stubborn.memory.grow(3 * PAGE)
    assert "this device takes" in stubborn.last_error


class Growing(ReferenceDevice):
    """A device during whose play somebody grows the memory."""

    guest: DeviceGuest | None = None
    refusal: BaseException | None = None

    def play(self, program: object, *, timeout: float | None = None, then: object = None) -> None:
        assert self.guest is not None
        try:
            self.guest.memory.grow_in_place(self.guest.memory.size + PAGE)
        except MemoryLimitError as error:
            self.refusal = error
        super().play(program, timeout=timeout)


def test_growth_is_refused_while_the_device_plays() -> None:
    device = Growing()
    with DeviceGuest(passthrough.text(), device=device) as guest:
        device.guest = guest
        assert submit(guest, doubling()) == 0
        assert guest.memory.size == PAGE
    assert "while the device plays" in str(device.refusal)


class Moving(ReferenceDevice):
    """A device that sees pages elsewhere after each growth, as one that maps them may."""

    compiled = 0

    def share(self, address: int, nbytes: int, **kw: object) -> HostPages:
        pages = super().share(address, nbytes)

        class Moved(HostPages):
            @property
            def device_address(self) -> int:
                return self.address + self.nbytes

        return Moved(pages.address, pages.nbytes)

    def compile(self, *args: object) -> object:
        self.compiled += 1
        return super().compile(*args)


def test_programs_are_compiled_again_when_the_pages_moved() -> None:
    device = Moving()
    tape = TapeBuilder()
    tape.fill(Tensor(Space.GUEST, DATA, (4,), DType.F32), 1)
    with DeviceGuest(passthrough.text(), device=device) as guest:
        for _ in range(3):
            assert submit(guest, tape) == 0
        assert device.compiled == 1
        guest.call("grow", 1)
        assert submit(guest, tape) == 0
        assert device.compiled == 2
