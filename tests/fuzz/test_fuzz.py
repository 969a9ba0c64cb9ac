"""Hostile tapes, for some seconds; `make fuzz` runs the same for longer."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nocopy.device.discovery import probe
from nocopy.device.protocol import Device
from nocopy.memory.dtype import DType
from nocopy.tape import Space, TapeBuilder, Tensor
from nocopy.tape.record import RECORD_BYTES
from tests.fuzz.target import Target
from tests.tape.choices import Drawn

ROOT = Path(__file__).resolve().parents[2]

FLAWED = """
import os, sys
if "tests.fuzz.worker" in sys.orig_argv:
    sys.path[:0] = [{root!r}, {root!r} + "/src"]
    from nocopy.device.reference import ReferenceDevice
    from nocopy.errors import DeviceError
    from nocopy.tape import Space
    play, played = ReferenceDevice.play, []

    def flawed(self, program, *, timeout=None, then=None):
        play(self, program, timeout=timeout)
        played.append(None)
        if len(played) == 20:
            memory = program.spaces[Space.GUEST].array()
            {flaw}

    ReferenceDevice.play = flawed
"""
"""A `sitecustomize` module: the reference device of the fuzzing process breaks in its 20th play."""


@pytest.fixture(scope="module")
def target(device: Device) -> Iterator[Target]:
    target = Target(device)
    yield target
    target.close()


@given(st.data())
def test_nearly_right_tapes_harm_nothing(target: Target, data: st.DataObject):
    target.from_choices(Drawn(data.draw))


@given(st.binary(min_size=RECORD_BYTES, max_size=2 * RECORD_BYTES))
def test_bytes_that_are_no_tape_harm_nothing(target: Target, raw: bytes):
    target.run(raw[: len(raw) // RECORD_BYTES * RECORD_BYTES])


def test_indices_that_are_data_cannot_reach_outside(target: Target):
    """The one thing that the validator cannot check: noise as gather's indices, and what follows from it."""
    tape = TapeBuilder()
    indices = Tensor(Space.GUEST, 0, (1000,), DType.I32)
    table = Tensor(Space.KV, 0, (16, 8), DType.F32)
    tape.gather(Tensor(Space.GUEST, 8192, (1000, 8), DType.F32), table, indices)
    for seed in range(20):
        target.arena.scatter(seed)
        target.run(bytes(tape))


def run_tool(folder: Path, *options: str, path: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools/fuzz.py"), "--corpus", str(folder / "corpus"), *options]
    env = os.environ | ({"PYTHONPATH": path} if path else {})
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=200, check=False)


def test_the_tool_reports_what_it_did(tmp_path: Path):
    devices = ["reference", *(["cpu"] if probe("cpu").available else [])]
    outcome = tmp_path / "fuzz.json"
    options = [f"--device={name}" for name in devices]
    done = run_tool(tmp_path, "--seconds=2", f"--json={outcome}", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(outcome.read_text())["rows"]
    assert [row["device"] for row in rows] == devices
    for row in rows:
        assert row["failure"] == ""
        assert row["executions"] > 50
        assert 0.2 < row["accepted_share"] < 1, "the generator no longer makes nearly right tapes"


@pytest.mark.parametrize(
    ("flaw", "says"),
    [
        ("import ctypes; ctypes.string_at(0)", "deadly signal|status -11"),
        ("memory[60_000] ^= 1", "changed 1 bytes of guest that no output owns"),
        ("raise DeviceError('lost')", "DeviceError: lost"),
    ],
    ids=["crash", "stray write", "error"],
)
def test_the_tool_notices_a_flawed_player(tmp_path: Path, flaw: str, says: str):
    (tmp_path / "sitecustomize.py").write_text(FLAWED.format(flaw=flaw, root=str(ROOT)))
    done = run_tool(tmp_path, "--seconds=30", "--device=reference", path=str(tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "ended with status" in done.stdout
    log = (tmp_path / "corpus/reference/log.txt").read_text(errors="replace")
    assert re.search(says, done.stdout + log)
    kept = next((tmp_path / "corpus/reference").glob("failure-*.tape"))
    assert kept.stat().st_size % RECORD_BYTES == 0
