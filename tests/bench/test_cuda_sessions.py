"""10,000 sessions leave nothing behind: not in the driver, not in the process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.device.emulated_process import ROOT, emulated_driver  # noqa: F401

STILL = ("contexts", "modules", "graphs", "registrations", "allocations", "allocated_bytes", "free_bytes")


@pytest.mark.slow  # the driver is asked a million times, which takes half a minute
@pytest.mark.parametrize("sessions", [10_000])
def test_ten_thousand_sessions_leave_nothing_behind(
    emulated_driver: dict[str, str],  # noqa: F811 (a fixture)
    tiny_gguf: Path,
    tmp_path: Path,
    sessions: int,
) -> None:
    found = run({**emulated_driver, "NOCOPY_EMULATION": "dry"}, tiny_gguf, tmp_path, sessions, every=50)
    first, *rows, last = found["rows"]
    assert (first["sessions"], last["sessions"]) == (0, sessions)
    assert first["registrations"] == first["graphs"] == 0
    assert first["allocations"] > 0
    for row in (*rows, last):
        assert {name: row[name] for name in STILL} == {name: first[name] for name in STILL}
    # The allocator's own noise; a leak of 400 bytes a session would show.
    assert last["resident_bytes"] - rows[0]["resident_bytes"] < 4 << 20


def run(environment: dict[str, str], model: Path, directory: Path, sessions: int, every: int) -> Any:
    file = directory / "sessions.json"
    command = [sys.executable, "bench/cuda_sessions.py", "--sessions", str(sessions), "--every", str(every)]
    command += ["--seconds", "280", "--model", str(model), "--json", str(file)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return json.loads(file.read_text())
