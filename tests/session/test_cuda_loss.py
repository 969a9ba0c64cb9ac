"""A kernel writes to a wild address: what becomes of the guests and sessions of the process.

On a GPU, or on `tests/device/emulated_cuda/libcuda.cpp` through tests/device/test_cuda_driver.py. Each test
is a process of its own, because CUDA gives no other context to one whose kernel has faulted.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.device.conftest import open_or_skip
from tests.device.emulated_process import ROOT

START = """
import sys
import numpy as np
import nocopy
from nocopy.device import cuda
from nocopy.errors import ClosedError, DeviceError, DeviceLostError, DeviceUnavailableError
from nocopy.memory import DType
from nocopy.tape import Space, TapeBuilder, Tensor

def raises(kind, call):
    try:
        call()
    except kind as error:
        return str(error)
    raise SystemExit(f"{kind.__name__} was not raised")

def fault(device):
    "Have a kernel write where nothing is, as a wrong one would."
    memory = nocopy.LinearMemory(65536, reserve=65536, guard=0)
    pages = device.share(memory.address, memory.size)
    x = Tensor(Space.GUEST, 0, (64,), DType.F32)
    tape = TapeBuilder()
    tape.unary("neg", x, x)
    program = device.compile(tape.build({Space.GUEST: memory.size}), {Space.GUEST: pages})
    with device.driver.current():
        device.driver.unregister(memory.address)
    return raises(DeviceLostError, lambda: device.play(program))

def again():
    "Whether the process gets the GPU once more; if it does, it computes."
    try:
        device = nocopy.open_device("cuda")
    except DeviceUnavailableError as error:
        assert "no other context" in str(error) and "another device" in str(error), error
        return False
    with nocopy.Guest('(module (memory (export "memory") 1))', device=device) as guest:
        x = guest.memory.view(64, "f32")
        x[:] = 3
        tape = TapeBuilder()
        tape.unary("neg", x, x)
        guest.play(tape)
        assert (x.numpy() == -3).all()
    device.close()
    return True

device = cuda.open_device()
"""

GUEST = """
with nocopy.Guest('(module (memory (export "memory") 2))', device=device) as guest:
    x = guest.memory.view(64, "f32", 65536)
    y = Tensor(Space.SCRATCH, 0, (64,), DType.F32)
    x[:] = 3
    assert x.__cuda_array_interface__["data"][0]
    tape = TapeBuilder()
    tape.binary("add", y, x, x)
    tape.copy(x, y)
    guest.play(tape)
    message = fault(device)
    assert "Go on with another device" in message, message
    assert "was lost" in raises(ClosedError, lambda: guest.play(tape))
    assert not hasattr(x, "__cuda_array_interface__")
    raises(BufferError, lambda: x.__dlpack__(dl_device=(2, 0)))
    x[:] = np.arange(64)
    print("again" if again() else "refused")
    moved = guest.move("cpu")
    assert (moved.lost, moved.scratch) == (True, 1 << 20), moved
    guest.play(tape)
    assert (x.numpy() == 2 * np.arange(64)).all()
    assert guest.ledger.copied == 0
print("unharmed")
"""

SESSION = """
PROMPT = [5, 9, 2, 7, 11, 3]
with nocopy.LanguageModel(sys.argv[1], device=device, context=32, kv="f32") as model:
    session = model.session()
    session.append(PROMPT)
    assert session.kept == 0
    fault(device)
    raises(ClosedError, lambda: session.append([1]))
    assert session.tokens.tolist() == PROMPT
    assert model.move("cpu") == len(PROMPT)
    with nocopy.LanguageModel(sys.argv[1], device="cpu", context=32, kv="f32") as undisturbed:
        truth = undisturbed.session()
        truth.append(PROMPT)
        for _ in range(8):
            assert np.allclose(session.logits, truth.logits, atol=1e-4)
            token = int(truth.logits.argmax())
            session.append([token])
            truth.append([token])
print("unharmed")
"""


@pytest.fixture(autouse=True)
def _a_gpu() -> None:
    open_or_skip("cuda").close()


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, "-c", START + script, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("unharmed\n"), done.stdout + done.stderr
    return done.stdout


def test_a_guest_keeps_its_memory_and_goes_on_with_another_device() -> None:
    assert run(GUEST).startswith(("again\n", "refused\n"))


def test_a_session_reads_its_tokens_again_on_another_device(tiny_gguf: Path) -> None:
    run(SESSION, str(tiny_gguf))
