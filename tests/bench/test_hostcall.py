"""Whether the benchmark measures what it says; the figures themselves are checked by `nocopy bench`."""

import pytest

from nocopy import native
from nocopy.bench import hostcall
from nocopy.errors import DeviceUnavailableError


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(hostcall, "SECONDS", 0.05)
    monkeypatch.setattr(hostcall, "CALLS", 100)
    monkeypatch.setattr(hostcall, "NATIVE_CALLS", 100)


def test_every_direction_is_compared_with_wasmtimes_own(short):
    rows = hostcall.rows()
    assert [r["case"].split(" (")[0] for r in rows][:2] == [
        "guest -> Python function",
        "Python -> guest function",
    ]
    for row in rows:
        assert row["unit"] == "us"
        assert row["value"] > 0
        assert row["ratio"] > 1


def test_without_the_native_library_its_row_is_missing(short, monkeypatch):
    def missing(_name):
        raise DeviceUnavailableError("cpu", "it was not built", "Build it")

    monkeypatch.setattr(native, "address", missing)
    assert len(hostcall.rows()) == 2


def test_both_sides_compute_the_same(short):
    ordinary = hostcall.Ordinary()
    assert ordinary.function("add")(3, 4) == 7
    assert ordinary.function("adds")(10) == 55
    assert ordinary.function("versions")(10) == 10
