"""Round trips and sharing: both sides compute the same thing, and the copying host copies what it says."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from nocopy.bench import roundtrip, share
from nocopy.bench.copying import CopyingHost, HostCarrier
from nocopy.bench.roundtrip import check, open_copying, open_sharing, prepare, round_trips, trip
from nocopy.device.reference import ReferenceDevice
from nocopy.errors import DeviceError

NBYTES = 4096
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def device() -> Iterator[ReferenceDevice]:
    with closing(ReferenceDevice()) as opened:
        yield opened


def test_both_programs_negate_the_same_tensor(device: ReferenceDevice) -> None:
    with closing(CopyingHost(device)) as host, open_sharing(device) as sharing, open_copying(host) as copying:
        host.hold(HostCarrier(device, NBYTES), NBYTES)
        tensors = []
        for guest in (sharing, copying):
            offset = prepare(guest, NBYTES)
            trip(guest)()
            check("test", guest, NBYTES)
            tensors.append(np.array(guest.memory.view(NBYTES // 4, "f32", offset)))
    np.testing.assert_array_equal(*tensors)
    assert tensors[0][1] == -2.0


def test_the_copying_host_copies_each_way_once_and_the_sharing_one_never(device: ReferenceDevice) -> None:
    with closing(CopyingHost(device)) as host, open_sharing(device) as sharing, open_copying(host) as copying:
        host.hold(HostCarrier(device, NBYTES), NBYTES)
        for guest in (sharing, copying):
            prepare(guest, NBYTES)
            for _ in range(3):
                trip(guest)()
        assert host.copied == 3 * 2 * NBYTES
        assert sharing.ledger.copied == 0


def test_a_device_that_computes_nothing_is_found_out(
    device: ReferenceDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReferenceDevice, "play", lambda *_args, **_options: None)
    with open_sharing(device) as guest:
        prepare(guest, NBYTES)
        with pytest.raises(DeviceError, match="wrong"):
            trip(guest)()


def test_a_device_that_forgets_the_middle_is_found_out(device: ReferenceDevice) -> None:
    with open_sharing(device) as guest:
        offset = prepare(guest, NBYTES)
        trip(guest)()
        np.asarray(guest.memory.view(NBYTES // 4, "f32", offset))[500:502] *= -1
        with pytest.raises(DeviceError, match="2 elements are wrong"):
            check("test", guest, NBYTES)


def test_a_tensor_that_does_not_fit_is_refused_by_the_guest(device: ReferenceDevice) -> None:
    with open_sharing(device) as guest, pytest.raises(DeviceError, match="bytes was asked for"):
        prepare(guest, 2**32 - 4)


def test_round_trips_are_measured_for_each_size(
    device: ReferenceDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roundtrip, "SECONDS", 0.01)
    seen: list[float] = []
    found = round_trips(device, [1024, 4096], lambda _what, done: seen.append(done))
    assert [t.nbytes for t in found] == [1024, 4096]
    assert all(t.shared > 0 and list(t.copied) == ["copy"] for t in found)
    assert seen == [0.0, 0.5]


def test_sharing_is_measured_for_each_size(device: ReferenceDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share, "SECONDS", 0.01)
    monkeypatch.setattr(share, "SIZES", (2**20, 2**22))
    found = share.rows(device)
    assert [r["case"] for r in found] == ["1 MiB", "4 MiB"]
    assert all(r["unit"] == "us" and r["ratio"] > 1 for r in found)


def test_the_guests_are_what_their_source_compiles_to() -> None:
    command = [sys.executable, str(ROOT / "tools" / "build_guests.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_script_prints_the_same_json_as_the_verb(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(share, "SECONDS", 0.01)
    monkeypatch.setattr(share, "SIZES", (2**20,))
    script = str(ROOT / "bench" / "share.py")
    monkeypatch.setattr(sys, "argv", [script, "--device", "reference", "--json"])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_path(script, run_name="__main__")
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["name", "device", "machine", "rows"]
    assert found["name"] == "share"
