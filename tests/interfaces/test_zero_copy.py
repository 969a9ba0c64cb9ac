"""The claim of the project, in a process of its own: no byte moves, and resident memory shows it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from nocopy.device.protocol import Mode
from tests.device.conftest import open_or_skip

MIB = 2**20

PROGRAM = """
import json, os, sys
import numpy as np
from nocopy.interfaces.host import DeviceGuest
from nocopy.tape import Space, TapeBuilder
from tests.interfaces.passthrough import submit, text

def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def in_place(guest, n, offset):
    x = guest.memory.view(n, "f32", offset)
    tape = TapeBuilder()
    tape.binary("add", x, x, x)
    return tape

N, AT = 4 << 20, 1 << 20
with DeviceGuest(text(pages=1024), device=sys.argv[1]) as guest:
    guest.memory.view(1024, "f32", AT)[:] = 1
    for _ in range(3):
        assert submit(guest, in_place(guest, 1024, AT)) == 0   # threads, shaders and caches are there
    guest.memory.view(N, "f32", AT)[:] = 1
    tape = in_place(guest, N, AT)
    before = resident()
    code = submit(guest, tape)
    after = resident()
    print(json.dumps({
        "code": code,
        "right": bool((guest.memory.view(N, "f32", AT).numpy() == 2).all()),
        "copied": guest.ledger.copied,
        "shared": guest.ledger.shared,
        "growth": after - before,
        "pointers": [guest.memory.address, guest.pages.address, guest.wasm_address],
        "device": guest.pages.device_address,
    }))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm")
@pytest.mark.parametrize("name", ["cpu", "vulkan", "cuda"])
def test_a_tensor_of_16_mib_is_computed_where_it_lies(name: str) -> None:
    device = open_or_skip(name)
    mode = device.info.mode
    device.close()
    if mode is Mode.STAGED:
        pytest.skip(f"{name} can only copy on this machine, and says so")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, name], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["code"] == 0
    assert result["right"]
    assert result["copied"] == 0
    assert result["shared"] == 64 * MIB
    assert result["growth"] < 0.1 * MIB
    assert len(set(result["pointers"])) == 1
    if mode is Mode.SAME_POINTER:
        assert result["device"] == result["pointers"][0]
