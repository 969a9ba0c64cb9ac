"""`nocopy prove`: the evidence is measured, complete, and says no when it should."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from functools import cache
from mmap import mmap
from pathlib import Path
from typing import Any

import pytest

from nocopy.bench.roundtrip import RoundTrip
from nocopy.cli.probe import probe_all
from nocopy.device.protocol import DeviceInfo, Mode
from nocopy.prove import Proof
from nocopy.prove.residency import TENSOR_BYTES, residency, resident_bytes
from tests.cli.run_cli import Done, nocopy_cli

MEBIBYTE = 1 << 20


@cache
def fast_device() -> str:
    """`cpu` where it was built, else the device that is always there."""
    return next(s.name for s in probe_all(("cpu", "reference")) if s.available)


@cache
def prove() -> Done:
    return nocopy_cli("prove", "--device", fast_device(), "--size", "64KiB", "--json")


def test_json_has_exactly_the_documented_keys() -> None:
    done = prove()
    assert (done.status, done.err) == (0, "")
    found = done.json
    assert list(found) == [
        "device",
        "mode",
        "pointers",
        "same_pointer",
        "copied_bytes",
        "rss_growth_shared",
        "rss_growth_copied",
        "matmul_max_rel_error",
        "roundtrip",
    ]
    assert list(found["pointers"]) == ["memory", "device", "wasm"]
    assert [list(trip) for trip in found["roundtrip"]] == [["bytes", "shared_us", "staged_us"]] * 4
    assert [trip["bytes"] for trip in found["roundtrip"]] == [2**10, 2**12, 2**14, 2**16]


def test_pointers_are_one_and_nothing_is_copied() -> None:
    found = prove().json
    assert found["same_pointer"] is True
    assert len(set(found["pointers"].values())) == 1
    assert found["pointers"]["memory"] % 65536 == 0 != found["pointers"]["memory"]
    assert found["copied_bytes"] == 0


def test_the_product_is_right_and_times_are_times() -> None:
    found = prove().json
    assert 0 < found["matmul_max_rel_error"] < 3e-5
    for trip in found["roundtrip"]:
        assert 0 < trip["shared_us"] < 1e6
        assert 0 < trip["staged_us"] < 1e6


def test_sharing_16_mib_costs_less_than_a_tenth_of_a_mebibyte_and_copying_costs_it_all() -> None:
    if fast_device() == "reference":
        pytest.skip("NumPy computes in temporaries of its own; the cpu device is the one to measure")
    found = prove().json
    assert abs(found["rss_growth_shared"]) < 0.1 * MEBIBYTE
    assert abs(found["rss_growth_copied"] - TENSOR_BYTES) < 0.5 * MEBIBYTE


@pytest.mark.parametrize("device", ["cuda", "metal", "vulkan", "reference"])
def test_the_other_devices_here_hold_too(device: str) -> None:
    (status,) = probe_all((device,))
    if not status.available or status.mode == Mode.STAGED:
        pytest.skip(status.reason or "it could only copy")
    done = nocopy_cli("prove", "--device", device, "--size", "1KiB", "--json")
    assert (done.status, done.err) == (0, "")
    assert done.json["mode"] == status.mode
    assert done.json["same_pointer"] is (status.mode == Mode.SAME_POINTER)
    assert done.json["copied_bytes"] == 0


def test_resident_memory_is_measured_in_a_process_whose_failure_is_said() -> None:
    from nocopy.errors import DeviceError

    with pytest.raises(DeviceError, match="resident memory"):
        residency("no-such-device", "shared")


def test_the_page_for_people_says_it_all(tmp_path: Path) -> None:
    picture = tmp_path / "proof.png"
    done = nocopy_cli("prove", "--device", fast_device(), "--size", "4KiB", "--plot", str(picture))
    assert done.status == 0
    for words in (
        "one pointer",
        "copied 0 B",
        "262,144 elements",
        "largest relative error",
        "4 KiB",
        "It holds",
    ):
        assert words in done.out
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("size", ["x", "0", "512", "2GiB", "-1"])
def test_a_size_that_makes_no_sense_is_refused(size: str) -> None:
    done = nocopy_cli("prove", "--device", "reference", f"--size={size}")
    assert (done.status, done.out) == (2, "")
    assert "--size" in done.err


def proof(**changes: Any) -> Proof:
    good = Proof(
        DeviceInfo("cpu", "CPU", Mode.SAME_POINTER, 0, {}),
        {"memory": 4096, "device": 4096, "wasm": 4096},
        {"shared": 1, "uploaded": 0, "downloaded": 0, "staged": 0, "copied": 0},
        0,
        TENSOR_BYTES,
        1e-6,
        [RoundTrip(1024, 1e-6, {"copy": 2e-6})],
    )
    return replace(good, **changes)


MAPPED = DeviceInfo("vulkan", "GPU", Mode.MAPPED, 0, {})


@pytest.mark.parametrize(
    ("changes", "holds"),
    [
        ({}, True),
        ({"device": MAPPED, "pointers": {"memory": 4096, "device": 8192, "wasm": 4096}}, True),
        ({"pointers": {"memory": 4096, "device": 8192, "wasm": 4096}}, False),
        ({"device": MAPPED, "pointers": {"memory": 4096, "device": 8192, "wasm": 8192}}, False),
        ({"ledger": {"shared": 1, "staged": 1, "copied": 1}}, False),
        ({"matmul_max_rel_error": 1e-3}, False),
        ({"matmul_max_rel_error": float("nan")}, False),
    ],
)
def test_evidence_that_does_not_hold_is_not_called_proof(changes: dict[str, Any], holds: bool) -> None:
    assert proof(**changes).holds is holds


def test_resident_memory_is_read_to_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = mmap(-1, TENSOR_BYTES)
    before = resident_bytes()
    assert resident_bytes() - before < MEBIBYTE  # reserved is not resident
    ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(pages)), 1, TENSOR_BYTES)
    exact = resident_bytes()
    assert abs(exact - before - TENSOR_BYTES) < MEBIBYTE
    monkeypatch.setattr(Path, "exists", lambda _path: False)
    assert abs(resident_bytes() - exact) < MEBIBYTE  # by statm, where there is no smaps_rollup
