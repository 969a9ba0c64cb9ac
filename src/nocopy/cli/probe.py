"""Tries devices in a process of its own: a driver that crashes or hangs cannot take `doctor` with it."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence

from nocopy.device.discovery import MODULES, DeviceStatus, probe

SECONDS = 60.0  # for one device: a first run may compile kernels
CRASHED = "See all of what it says with `python -m nocopy.cli.probe {}`, and update or remove that driver."


def probe_all(names: Sequence[str] = tuple(MODULES)) -> list[DeviceStatus]:
    """Probe devices in order. One that ends the process, or hangs, is reported as unavailable."""
    found: list[DeviceStatus] = []
    while len(found) < len(names):
        found += _probe_until_it_breaks(names[len(found) :])
    return found


def _probe_until_it_breaks(names: Sequence[str]) -> list[DeviceStatus]:
    """Probe in one process. If it ends early, the last status says of the next device why."""
    command = [sys.executable, "-m", "nocopy.cli.probe", *names]
    found: list[DeviceStatus] = []
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env=_environment(),
        bufsize=0,
    ) as process:
        assert process.stdout is not None
        while len(found) < len(names):
            ready, _, _ = select.select([process.stdout], [], [], SECONDS)
            line = process.stdout.readline() if ready else b""
            if not line:
                process.kill()
                said = (process.communicate()[1] or b"").decode(errors="replace").strip().splitlines()
                why = f"{SECONDS:.0f} s passed" if not ready else _ending(process.returncode)
                detail = f" ({said[-1]})" if said else ""
                return [
                    *found,
                    DeviceStatus(
                        names[len(found)], False, "", "", f"probing it ended: {why}{detail}", CRASHED
                    ),
                ]
            found.append(DeviceStatus(**json.loads(line)))
    return found


def _environment() -> dict[str, str]:
    """The environment here, and the path on which it found nocopy."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def _ending(returncode: int) -> str:
    if returncode < 0:
        return f"the process got {signal.Signals(-returncode).name}"
    return f"the process exited with status {returncode}"


if __name__ == "__main__":
    for _name in sys.argv[1:]:
        sys.stdout.write(json.dumps(probe(_name).as_dict()) + "\n")
        sys.stdout.flush()
