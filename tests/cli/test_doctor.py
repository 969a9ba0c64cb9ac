"""`doctor` and `devices`: what is there, what is not and why, even when a driver crashes."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

import pytest

from nocopy.cli import probe
from nocopy.device.discovery import MODULES
from nocopy.device.protocol import Mode
from tests.cli.run_cli import Done, environment, nocopy_cli


@cache
def doctor() -> Done:
    return nocopy_cli("doctor", "--json")


def test_doctor_json_has_the_documented_keys() -> None:
    found = doctor().json
    assert list(found) == [
        "devices",
        "versions",
        "native_library",
        "compiler",
        "cpu",
        "memory_bytes",
        "page_bytes",
        "memlock_limit_bytes",
    ]
    assert [d["name"] for d in found["devices"]] == list(MODULES)
    for device in found["devices"]:
        assert list(device) == ["name", "available", "mode", "reason", "fix", "details"]
        assert device["available"] or not device["details"]
    assert set(found["cpu"]) == {"model", "cores", "simd"}
    assert set(found["native_library"]) == {"available", "path", "levels", "reason", "fix"}


def test_a_device_has_a_mode_or_a_reason_and_a_fix() -> None:
    for device in doctor().json["devices"]:
        if device["available"]:
            assert device["mode"] in set(Mode)
            assert device["reason"] == device["fix"] == ""
        else:
            assert device["mode"] == ""
            assert device["reason"]
            assert device["fix"]


def test_doctor_says_what_devices_say_of_themselves() -> None:
    page = " ".join(nocopy_cli("doctor", COLUMNS="400").out.split())
    for device in doctor().json["devices"]:
        assert all(f"{name} {value}" in page for name, value in device["details"].items())


def test_the_reference_device_is_always_there() -> None:
    reference = next(d for d in doctor().json["devices"] if d["name"] == "reference")
    assert reference["available"]


def test_doctor_names_the_fix_of_every_missing_device() -> None:
    page = " ".join(nocopy_cli("doctor", COLUMNS="200").out.split())
    for device in doctor().json["devices"]:
        assert device["name"] in page
        if not device["available"]:
            assert " ".join(device["fix"].split()) in page


def test_without_the_native_library_cpu_is_missing_and_the_rest_is_not() -> None:
    found = nocopy_cli("doctor", "--json", NOCOPY_LIBRARY="/nowhere/libnocopy.so").json
    cpu = next(d for d in found["devices"] if d["name"] == "cpu")
    assert not cpu["available"]
    assert "/nowhere/libnocopy.so" in cpu["reason"]
    assert "NOCOPY_LIBRARY" in cpu["fix"]
    assert found["native_library"] == {
        "available": False,
        "path": "",
        "levels": [],
        "reason": cpu["reason"],
        "fix": cpu["fix"],
    }
    assert found["devices"][-1]["available"]


def test_devices_says_what_they_are() -> None:
    found = nocopy_cli("devices", "--json").json["devices"]
    assert [d["name"] for d in found] == list(MODULES)
    assert all(d["product"] for d in found if d["available"])


CRASHING = """
import os, signal, sys
from nocopy.device import discovery
def crash(*, allow_copy=False):
    {how}
sys.modules["crashing"] = type(sys)("crashing")
sys.modules["crashing"].open_device = crash
discovery.MODULES = {{"crashing": "crashing", "reference": "nocopy.device.reference"}}
import runpy
runpy.run_module("nocopy.cli.probe", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("raise RuntimeError('the driver is broken')", "the driver is broken"),
        ("os._exit(7)", "status 7"),
    ],
)
def test_a_driver_that_ends_the_process_is_reported_and_the_rest_is_still_tried(
    how: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        return real([sys.executable, "-c", CRASHING.format(how=how), *command[3:]], **options)

    real = subprocess.Popen
    monkeypatch.setattr(probe.subprocess, "Popen", start)
    monkeypatch.setattr(probe, "_environment", environment)
    crashing, reference = probe.probe_all(("crashing", "reference"))
    assert not crashing.available
    assert says in crashing.reason
    assert crashing.fix
    assert reference.available


def test_a_driver_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        how = "import time; time.sleep(60)"
        return real([sys.executable, "-c", CRASHING.format(how=how), *command[3:]], **options)

    real = subprocess.Popen
    monkeypatch.setattr(probe.subprocess, "Popen", start)
    monkeypatch.setattr(probe, "_environment", environment)
    monkeypatch.setattr(probe, "SECONDS", 2.0)
    hanging, reference = probe.probe_all(("crashing", "reference"))
    assert "2 s passed" in hanging.reason
    assert reference.available
