"""The classification example sees what ONNX Runtime sees, and copies only what it says."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnx
import pytest

from nocopy.errors import ExitError
from nocopy.examples import find
from nocopy.interfaces.host import DeviceGuest
from nocopy.interfaces.wasi_nn.grants import NnLimits

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "classify"
PICTURES = 450


def run(*, status: int = 0, **kw: object) -> DeviceGuest:
    module = find("examples/classify") or Path()
    kw = {"nn_limits": NnLimits(model_bytes=1 << 20)} | kw
    with DeviceGuest(module, device="reference", stdout="capture", stderr="capture", **kw) as guest:
        with pytest.raises(ExitError) if status else nullcontext() as ended:
            guest.run()
        assert ended is None or ended.value.status == status
    return guest


def data() -> tuple[np.ndarray, np.ndarray]:
    raw = np.frombuffer((FOLDER / "digits.bin").read_bytes(), np.uint8)
    return raw[: PICTURES * 64].reshape(PICTURES, 1, 8, 8), raw[PICTURES * 64 :]


def test_it_reads_what_onnx_runtime_reads() -> None:
    import onnxruntime

    pictures, labels = data()
    session = onnxruntime.InferenceSession(str(FOLDER / "digits.onnx"))
    (scores,) = session.run(None, {"pictures": pictures})
    accuracy = float((scores.argmax(1) == labels).mean())
    assert accuracy >= 0.99
    guest = run()
    said = guest.stdout.decode()
    assert f"accuracy  {accuracy:.4f} on 450 pictures" in said
    assert "450 answers the same" in said
    shown = [(int(a), int(b), int(c)) for a, b, c in re.findall(r"(\d) \(([ \d]\d) %\), is (\d)", said)]
    assert shown[:6] == [
        (int(s.argmax()), round(float(100 * s.max())), int(n))
        for s, n in zip(scores[:6], labels[:6], strict=True)
    ]


def test_it_copies_the_network_and_the_first_scores_of_a_shape() -> None:
    ledger = run().ledger
    assert ledger.uploaded == (FOLDER / "digits.onnx").stat().st_size
    assert ledger.staged <= (PICTURES + 1) * 10 * 4


def test_it_says_why_it_cannot() -> None:
    guest = run(status=1, nn_limits=NnLimits(bytes=0, model_bytes=1 << 20))
    assert guest.stderr == b"classify: load: too large (7)\n"
    guest = run(status=1, nn_limits=NnLimits())
    assert guest.stderr == b"classify: load: unsupported operation (6)\n"


def test_the_network_is_what_the_training_says() -> None:
    model = onnx.load(FOLDER / "digits.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [i.name for i in model.graph.input] == ["pictures"]
    assert [o.name for o in model.graph.output] == ["scores"]
