"""The benchmark of wasi-nn: its three contenders answer the same, and copy what it says they do."""

from __future__ import annotations

import numpy as np
import pytest

from nocopy.bench import wasinn
from nocopy.bench.copying_nn import CopyingNn
from nocopy.bench.onnx_models import mobilenet
from nocopy.bench.wasinn import InPython, agree, inference, open_copying, open_ours, passing, prepare, timed
from nocopy.errors import DeviceError

NBYTES = 1 << 16


def test_all_contenders_answer_the_same_and_are_timed() -> None:
    times = timed(passing(NBYTES), seconds=0.01)
    assert set(times) == {wasinn.PYTHON, wasinn.COPYING}
    assert all(ours > 0 and peer > 0 for ours, peer in times.values())


def test_the_try_in_the_middle_counts() -> None:
    tries = [{"peer": (1.0, 3.0)}, {"peer": (2.0, 2.0)}, {"peer": (1.0, 2.0)}]
    assert wasinn.middle(tries) == {"peer": (1.0, 2.0)}


def test_the_copying_host_copies_four_times_each_way_and_ours_never() -> None:
    case = passing(NBYTES)
    with open_copying(case) as (copying, host), open_ours("reference") as ours:
        for guest in (copying, ours):
            prepare(guest, case)
            for _ in range(3):
                inference(guest)()
        assert host.copied == 3 * (4 + 4) * NBYTES
        assert ours.ledger.staged == ours.ledger.downloaded == 0
        assert ours.ledger.uploaded == len(case.model)


def test_a_host_that_answers_something_else_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    case = passing(NBYTES)
    monkeypatch.setattr(
        CopyingNn, "compute", lambda self, _context: setattr(self, "_output", 0 * self._input[1]) or 0
    )
    with open_copying(case) as (copying, _):
        prepare(copying, case)
        with pytest.raises(DeviceError, match="the answers differ"):
            agree(case, InPython(case), copying)


def test_a_guest_that_cannot_go_on_says_why() -> None:
    case = passing(NBYTES)
    with open_ours("reference") as guest:
        with pytest.raises(DeviceError, match="was to be loaded"):
            prepare(guest, wasinn.Case("nothing", b"\xff" * 16, case.shape, case.outputs))
        prepare(guest, case)
        guest.memory.write(guest.call("dimensions"), np.array([1], np.uint32).tobytes())
        with pytest.raises(DeviceError, match=r"was given; it takes|of shape \[1\]|1 elements"):
            inference(guest)()


def test_the_network_is_as_large_as_mobilenet() -> None:
    weights = 4 * 3_470_000
    assert weights < len(mobilenet()) < 1.05 * weights
