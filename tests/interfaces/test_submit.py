"""What a guest submits is played on its own memory, or refused with a code and a reason."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from nocopy.errors import DeadlineError, DeviceError, MemoryLimitError, TapeError, TrapError, UsageError
from nocopy.interfaces.attachment import ComputeLimits
from nocopy.memory.dtype import DType
from nocopy.tape import Space, TapeBuilder, Tensor
from nocopy.tape.validate import MAX_RECORDS
from nocopy.wasm import Limits
from tests.interfaces.conftest import Start
from tests.interfaces.passthrough import RECORDS, last_error, submit

DATA = 8192
PAGE = 65536


def doubling(n: int = 16, offset: int = DATA) -> TapeBuilder:
    """x = x + x, in place."""
    x = Tensor(Space.GUEST, offset, (n,), DType.F32)
    tape = TapeBuilder()
    tape.binary("add", x, x, x)
    return tape


def scratch_tape(nbytes: int, value: float = 1) -> TapeBuilder:
    """Fill the last float of `nbytes` of scratch."""
    tape = TapeBuilder()
    tape.fill(Tensor(Space.SCRATCH, nbytes - 4, (1,), DType.F32), value)
    return tape


def reads_scratch(offset: int, n: int = 1) -> TapeBuilder:
    """Copy floats of scratch to DATA."""
    tape = TapeBuilder()
    tape.copy(Tensor(Space.GUEST, DATA, (n,), DType.F32), Tensor(Space.SCRATCH, offset, (n,), DType.F32))
    return tape


def test_plays_on_the_guests_own_pages(start: Start) -> None:
    guest = start()
    x = guest.memory.view(16, "f32", DATA)
    x[:] = np.arange(16)
    assert submit(guest, doubling()) == 0
    assert np.array_equal(x.numpy(), 2 * np.arange(16))
    assert guest.last_error == ""


def test_a_tape_can_be_played_again_and_again(start: Start) -> None:
    guest = start()
    x = guest.memory.view(16, "f32", DATA)
    x[:] = 1
    for _ in range(10):
        assert submit(guest, doubling()) == 0
    assert np.all(x.numpy() == 1024)


def test_records_that_change_after_a_submit_are_other_records(start: Start) -> None:
    guest = start(pages=2)
    x, y = guest.memory.view(16, "f32", DATA), guest.memory.view(16, "f32", 2 * DATA)
    x[:], y[:] = 1, 1
    assert submit(guest, doubling()) == 0
    assert submit(guest, doubling(offset=2 * DATA)) == 0
    assert submit(guest, doubling(offset=2 * PAGE)) == TapeError.code
    assert submit(guest, doubling()) == 0
    assert (x.numpy()[0], y.numpy()[0]) == (4, 2)


def test_many_tapes_do_not_grow_without_bound(start: Start) -> None:
    guest = start()
    x = guest.memory.view(80, "f32", DATA)
    x[:] = 1
    for n in range(1, 81):
        assert submit(guest, doubling(n)) == 0
    assert np.all(x.numpy() == 2.0 ** np.arange(80, 0, -1))
    assert len(guest._compute.attachment.grip.programs) == 64


def test_no_records_is_nothing_to_do(start: Start) -> None:
    guest = start()
    assert guest.call("submit", 0, 0) == 0
    assert guest.call("submit", PAGE, 0) == 0
    assert guest.call("submit", PAGE + 1, 0) == UsageError.code


@pytest.mark.parametrize(
    ("pointer", "count"),
    [
        (PAGE, 1),
        (PAGE - 255, 1),
        (0xFFFFFFFF, 1),
        (0xFFFFFF00, 1),
        (0, 257),
        (256, 256),
        (0, MAX_RECORDS + 1),
        (0, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (1, 0x01000000),
    ],
)
def test_records_outside_the_memory_are_refused(start: Start, pointer: int, count: int) -> None:
    guest = start()
    assert guest.call("submit", pointer, count) == UsageError.code
    assert f"{count} records" in last_error(guest)


def test_a_64_bit_pointer_is_not_cut(start: Start) -> None:
    guest = start()
    if "i64" not in str(guest.module.exports["grow"].params):
        pytest.skip("only a memory64 guest has such pointers")
    guest.memory.write(RECORDS, bytes(doubling()))
    for high in (1 << 32, 1 << 63, 0xFFFFFFFF << 32):
        assert guest.call("submit", high + RECORDS, 1) == UsageError.code
    assert guest.call("submit", RECORDS, 1) == 0


def test_records_at_the_end_of_memory_are_read(start: Start) -> None:
    guest = start()
    assert submit(guest, doubling(), at=PAGE - 256) == 0
    assert submit(guest, doubling(), at=PAGE - 257) == 0


def test_a_refused_tape_plays_nothing_of_it(start: Start) -> None:
    guest = start()
    x = guest.memory.view(16, "f32", DATA)
    x[:] = 1
    bad = bytes(doubling()) + bytes(doubling(n=PAGE))
    assert submit(guest, bad) == TapeError.code
    assert np.all(x.numpy() == 1)
    assert "record 1 (binary)" in last_error(guest)
    assert f"which has {PAGE}" in last_error(guest)


@pytest.mark.parametrize("space", [Space.WEIGHTS, Space.KV])
def test_other_spaces_are_refused(start: Start, space: Space) -> None:
    tape = TapeBuilder()
    tape.fill(Tensor(space, 0, (1,), DType.F32), 1)
    guest = start()
    assert submit(guest, tape) == TapeError.code
    assert "this tape may use guest, scratch" in last_error(guest)


def test_random_bytes_are_refused(start: Start) -> None:
    guest = start()
    rng = np.random.default_rng(0)
    for _ in range(50):
        assert submit(guest, rng.bytes(512)) == TapeError.code


def test_more_work_than_allowed_is_refused(start: Start) -> None:
    guest = start(compute_limits=ComputeLimits(work=1000))
    assert submit(guest, doubling(1000)) == 0
    assert submit(guest, doubling(1001)) == TapeError.code
    assert "1000" in last_error(guest)


def test_scratch_is_zero_at_first_and_keeps_what_it_gets(start: Start) -> None:
    guest = start()
    x = guest.memory.view(4, "f32", DATA)
    x[:] = 7
    assert submit(guest, reads_scratch(4096, 4)) == 0
    assert np.all(x.numpy() == 0)
    assert submit(guest, scratch_tape(4096 + 4, 3)) == 0
    assert submit(guest, reads_scratch(4096)) == 0
    assert x.numpy()[0] == 3


def test_operands_without_elements_need_no_scratch_yet(start: Start) -> None:
    """The first tape that names scratch may do so with nothing in it."""
    guest = start()
    tape = TapeBuilder()
    tape.copy(Tensor(Space.SCRATCH, 0, (0, 4), DType.F32), Tensor(Space.GUEST, DATA, (0, 4), DType.F32))
    assert submit(guest, tape) == 0
    assert submit(guest, scratch_tape(4096, 3)) == 0


def test_scratch_keeps_its_contents_when_it_grows(start: Start) -> None:
    guest = start()
    x = guest.memory.view(1, "f32", DATA)
    sizes = [2**12, 2**20, 2**21 + 4, 2**24]
    for i, size in enumerate(sizes):
        assert submit(guest, scratch_tape(size, i + 1)) == 0
        for j, old in enumerate(sizes[: i + 1]):
            assert submit(guest, reads_scratch(old - 4)) == 0
            assert x.numpy()[0] == j + 1


def test_scratch_is_bounded(start: Start) -> None:
    guest = start(compute_limits=ComputeLimits(scratch=2**20))
    assert submit(guest, scratch_tape(2**20)) == 0
    assert submit(guest, scratch_tape(2**20 + 4)) == TapeError.code
    assert f"of space scratch, which has {2**20}" in last_error(guest)
    assert submit(guest, scratch_tape(2**20)) == 0


def test_guests_do_not_see_each_others_scratch(start: Start) -> None:
    one, other = start(), start()
    assert submit(one, scratch_tape(4096, 5)) == 0
    x = other.memory.view(1, "f32", DATA)
    x[:] = 9
    assert submit(other, reads_scratch(4092)) == 0
    assert x.numpy()[0] == 0


def test_one_guests_failure_touches_no_other(start: Start) -> None:
    good, bad = start(), start()
    x = good.memory.view(16, "f32", DATA)
    x[:] = 1
    for ruin in range(4):
        assert submit(bad, bytes(512)) == TapeError.code
        with pytest.raises(TrapError):
            bad.call("trap")
        assert submit(good, doubling()) == 0
        assert np.all(x.numpy() == 2 ** (ruin + 1))
    bad.close()
    assert submit(good, doubling()) == 0
    assert good.last_error == ""


def timed(call: Callable[[], None]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


def test_the_deadline_covers_what_is_submitted(start: Start) -> None:
    """A tape of some seconds under a deadline of a fifth of one; a GPU can only say so afterwards."""
    n = 256
    a, b, c = (Tensor(Space.GUEST, (1 + i) * 2**20, (n, n), DType.F32) for i in range(3))
    tape = TapeBuilder()
    tape.matmul(c, a, b)
    free = start(pages=512)
    free.play(tape)
    once = min(timed(lambda: free.play(tape)) for _ in range(20))
    for _ in range(min(60000, int(3 / once))):
        tape.matmul(c, a, b)
    guest = start(pages=512, limits=Limits(deadline=0.2))
    with pytest.raises(DeadlineError):
        submit(guest, tape, at=2**22)
    other = start(limits=Limits(deadline=5.0))
    assert submit(other, doubling()) == 0


def test_a_deadline_still_ends_a_guest_that_spins(start: Start) -> None:
    guest = start(limits=Limits(deadline=0.1))
    assert submit(guest, doubling()) == 0
    with pytest.raises(DeadlineError):
        guest.call("spin")


def test_a_closed_device_is_an_error_for_the_guest(start: Start, request: pytest.FixtureRequest) -> None:
    from tests.device.conftest import open_or_skip

    device = open_or_skip(start(pages=1).device.info.name)
    guest = start(device=device)
    assert submit(guest, doubling()) == 0
    assert submit(guest, scratch_tape(4096)) == 0
    device.close()
    for tape in (doubling(), doubling(3), scratch_tape(4096), scratch_tape(2**22)):
        assert submit(guest, tape) < 0
        assert last_error(guest)


def test_codes_are_those_of_the_error_classes() -> None:
    assert (UsageError.code, MemoryLimitError.code, TapeError.code, DeviceError.code) == (-2, -3, -7, -8)
