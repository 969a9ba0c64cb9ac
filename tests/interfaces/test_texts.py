"""What a guest reads and says: the device's description, error texts, log lines."""

from __future__ import annotations

import logging

import pytest

from nocopy.device.protocol import Mode
from nocopy.errors import TapeError, UsageError
from nocopy.interfaces.attachment import ComputeLimits
from nocopy.interfaces.imports import DEVICE_INFO, INTERFACE_VERSION, MAX_TEXT
from nocopy.tape.validate import MAX_RECORDS
from tests.interfaces.conftest import Start
from tests.interfaces.passthrough import submit

PAGE = 65536


def test_version(start: Start) -> None:
    assert start().call("version") == INTERFACE_VERSION == 1


def test_describes_the_device(start: Start) -> None:
    guest = start(compute_limits=ComputeLimits(scratch=12345, work=678))
    assert guest.call("describe", 1000, 256) == 256
    info = guest.memory.view(256, "u8", 1000).numpy().view(DEVICE_INFO)[0]
    device = guest.device.info
    assert info["name"].decode() == device.name
    assert device.product.encode().startswith(info["product"])
    assert info["mode"] == list(Mode).index(device.mode)
    assert info["software"] == device.software
    assert (info["version"], info["max_records"]) == (1, MAX_RECORDS)
    assert (info["memory_bytes"], info["scratch_bytes"], info["work_limit"]) == (
        device.memory_bytes,
        12345,
        678,
    )


@pytest.mark.parametrize("size", [0, 1, 4, 255, 256, 257, PAGE - 1000])
def test_description_writes_no_byte_beyond_its_buffer(start: Start, size: int) -> None:
    guest = start()
    guest.memory.view(PAGE, "u8")[:] = 0xEE
    assert guest.call("describe", 1000, size) == 256
    memory = guest.memory.read(0, PAGE)
    written = min(size, 256)
    assert memory[:1000] == b"\xee" * 1000
    assert memory[1000 + written :] == b"\xee" * (PAGE - 1000 - written)
    assert written == 0 or memory[1000] == INTERFACE_VERSION


@pytest.mark.parametrize(
    ("pointer", "size"), [(PAGE - 255, 256), (PAGE, 1), (0xFFFFFFFF, 0xFFFFFFFF), (PAGE + 1, 0)]
)
def test_buffers_outside_the_memory_are_refused(start: Start, pointer: int, size: int) -> None:
    guest = start()
    assert guest.call("describe", pointer, size) == UsageError.code
    assert guest.call("log", 1, pointer, size) == UsageError.code
    submit(guest, bytes(256))
    before = guest.last_error
    assert guest.call("last_error", pointer, size) == UsageError.code
    assert guest.last_error == before


def test_last_error_is_empty_at_first(start: Start) -> None:
    guest = start()
    guest.memory.view(16, "u8")[:] = 0xEE
    assert guest.call("last_error", 0, 16) == 0
    assert guest.memory.read(0, 2) == b"\0\xee"


@pytest.mark.parametrize("size", [0, 1, 2, 10, 4000])
def test_last_error_is_cut_to_its_buffer(start: Start, size: int) -> None:
    guest = start()
    assert submit(guest, bytes(256)) == TapeError.code
    whole = guest.last_error.encode()
    guest.memory.view(5000, "u8")[:] = 0xEE
    assert guest.call("last_error", 100, size) == len(whole)
    text = guest.memory.read(100, 4900)
    kept = whole[: max(0, size - 1)]
    assert text[: len(kept)] == kept
    assert text[len(kept) :] == (b"\0" if size else b"") + b"\xee" * (4900 - len(kept) - bool(size))


def test_last_error_is_cut_between_characters(start: Start) -> None:
    guest = start()
    guest._compute.error = "äöü"
    for size, kept in ((7, "äöü"), (6, "äö"), (5, "äö"), (4, "ä"), (2, ""), (1, "")):
        assert guest.call("last_error", 0, size) == 6
        assert guest.memory.read(0, 8).split(b"\0")[0].decode() == kept


def test_a_call_that_succeeds_keeps_the_last_error(start: Start) -> None:
    guest = start()
    submit(guest, bytes(256))
    text = guest.last_error
    assert guest.call("submit", 0, 0) == 0
    assert guest.call("describe", 0, 256) == 256
    assert guest.last_error == text


def test_logs_lines(start: Start) -> None:
    lines: list[tuple[int, str]] = []
    guest = start(log=lambda level, text: lines.append((level, text)))
    guest.memory.write(0, "grüß dich".encode())
    for level in range(4):
        assert guest.call("log", level, 0, 11) == 0
    assert lines == [(level, "grüß dich") for level in range(4)]
    assert guest.call("log", 4, 0, 11) == UsageError.code
    assert guest.call("log", -1, 0, 11) == UsageError.code
    assert len(lines) == 4


def test_what_a_guest_logs_cannot_forge_lines_or_move_the_cursor(start: Start) -> None:
    lines: list[str] = []
    guest = start(log=lambda _level, text: lines.append(text))
    text = b"a\nERROR b\r\x1b[2J\x9b\xff\0\tend"
    guest.memory.write(0, text)
    assert guest.call("log", 1, 0, len(text)) == 0
    assert lines[0].isprintable() or lines[0].replace("\t", "").isprintable()
    assert lines[0].startswith("a\\x0aERROR b\\x0d\\x1b[2J")


def test_long_lines_are_cut_and_say_so(start: Start) -> None:
    lines: list[str] = []
    guest = start(log=lambda _level, text: lines.append(text))
    guest.memory.view(PAGE, "u8")[:] = ord("x")
    assert guest.call("log", 1, 0, PAGE) == 0
    assert lines == ["x" * MAX_TEXT + f" … and {PAGE - MAX_TEXT} bytes more"]


def test_log_lines_go_to_the_logger_unless_told(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    guest = start()
    guest.memory.write(0, b"100 %s")
    with caplog.at_level(logging.DEBUG, "nocopy.guest"):
        assert guest.call("log", 2, 0, 6) == 0
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [(logging.WARNING, "100 %s")]


def test_what_the_log_raises_ends_the_guest_and_reaches_the_caller(start: Start) -> None:
    def refuse(_level: int, _text: str) -> None:
        raise OSError("disk full")

    guest = start(log=refuse)
    with pytest.raises(OSError, match="disk full"):
        guest.call("log", 1, 0, 0)
