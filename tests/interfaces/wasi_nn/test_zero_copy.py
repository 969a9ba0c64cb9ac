"""No tensor is copied: the ledger, the pointers that ONNX Runtime is given, and resident memory say so."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from tests.interfaces.wasi_nn.nn_guest import NnGuest, built, identity

NBYTES = 1 << 20

PROGRAM = """
import gc, json
import numpy as np
from nocopy.prove.residency import resident_bytes
from tests.interfaces.wasi_nn.nn_guest import OUT, NnGuest, model

N = 4 << 20
with NnGuest(pages=1200) as guest:
    context = guest.context(guest.load(model(["Neg"], "n")))
    x, y = guest.room(4 * N), guest.room(4 * N)
    view = guest.memory.view(N, "f32", x)
    view[:] = 1
    guest.memory.view(N, "f32", y)[:] = 1
    def infer(n):
        guest.ok("set_input", context, 0, guest.tensor(x, 1, [n], 4 * n))
        guest.ok("compute", context)
        guest.ok("get_output", context, 0, y, 4 * n, OUT)
    infer(N)                            # the first time that inputs have these shapes, outputs are copied
    guest.ok("set_input", context, 0, guest.tensor(x, 1, [1], 4))
    guest.ok("compute", context)        # lets go of what the first time left
    learned = dict(guest.ledger)
    gc.collect()
    before = resident_bytes()
    for _ in range(3):
        infer(N)
    print(json.dumps({
        "right": bool((guest.memory.view(N, "f32", y).numpy() == -1).all()),
        "copied": {k: v - learned[k] for k, v in guest.ledger.items()},
        "growth": resident_bytes() - before,
    }))
"""


class Bindings:
    """Which addresses ONNX Runtime was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from onnxruntime import IOBinding

        self.inputs: list[int] = []
        self.outputs: list[int] = []
        self._watch(monkeypatch, IOBinding, "bind_input", self.inputs)
        self._watch(monkeypatch, IOBinding, "bind_output", self.outputs)

    def _watch(self, monkeypatch: pytest.MonkeyPatch, kind: Any, name: str, seen: list[int]) -> None:
        original = getattr(kind, name)

        def watched(*args: Any) -> None:
            seen.append(args[6] if len(args) > 6 else 0)
            original(*args)

        monkeypatch.setattr(kind, name, watched)


def test_onnx_runtime_works_on_the_guests_own_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    bound = Bindings(monkeypatch)
    array = np.arange(NBYTES // 4, dtype=np.float32)
    with NnGuest() as guest:
        context = guest.context(guest.load(identity(NBYTES)))
        at, out = guest.room(NBYTES), guest.room(NBYTES)
        loaded = dict(guest.ledger)
        for turn in range(3):
            guest.set_input(context, 0, array + turn, at)
            guest.ok("compute", context)
            assert guest.get_output(context, 0, NBYTES, out) == (array + turn).tobytes()
        assert bound.inputs == [guest.memory.address + at]
        assert bound.outputs == [guest.memory.address + out]
        assert guest.ledger == loaded
        assert guest.ledger["staged"] == 0


def test_every_place_that_a_guest_chooses_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    bound = Bindings(monkeypatch)
    array = np.arange(NBYTES // 4, dtype=np.float32)
    with NnGuest() as guest:
        context = guest.context(guest.load(identity(NBYTES)))
        places = [(guest.room(NBYTES, 4), guest.room(NBYTES, 4)) for _ in range(3)]
        for at, out in places:
            guest.set_input(context, 0, array, at)
            guest.ok("compute", context)
            assert guest.get_output(context, 0, NBYTES, out) == array.tobytes()
        assert [a - guest.memory.address for a in bound.inputs] == [at for at, _ in places]
        assert [a - guest.memory.address for a in bound.outputs] == [out for _, out in places]
        assert guest.ledger["staged"] == 0


def test_of_a_model_that_may_fail_only_the_output_is_copied() -> None:
    with NnGuest() as guest:
        gather = guest.context(guest.load(indexing()))
        indices = np.zeros(1 << 17, np.int64)
        guest.set_input(gather, 0, indices)
        guest.ok("compute", gather)
        guest.get_output(gather, 0, 4 << 17)
        assert guest.ledger["staged"] == 4 << 17  # the input was twice as much


def indexing() -> bytes:
    """A table that is indexed by the input."""
    from onnx import TensorProto, helper, numpy_helper

    table = numpy_helper.from_array(np.arange(8, dtype=np.float32), "table")
    return built(
        [helper.make_node("Gather", ["table", "i"], ["y"])],
        [("i", TensorProto.INT64, ["n"])],
        [("y", TensorProto.FLOAT, ["n"])],
        [table],
    )


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_inferences_on_16_mib_take_no_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["right"]
    assert set(result["copied"].values()) == {0}
    assert result["growth"] < 1 << 20
