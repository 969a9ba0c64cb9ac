"""Whether fidelity is measured: float32 is the truth, and bf16 is further from it than nocopy on the CPU."""

import cuda_fidelity
import numpy as np
import torch
from peers import report
from peers.transformers_llama import load

from nocopy.bench.llama import tokens
from nocopy.models.load import open_model
from tests.bench.conftest import SMALL


def test_errors_are_relative_to_the_truth():
    truth = np.array([[3.0, -3.0], [3.0, 3.0]], np.float32)
    found = truth + np.array([[0.3, 0], [0, 0]], np.float32)
    errors = cuda_fidelity.errors(found, truth, "us")
    assert errors == {"us, rms": 0.05, "us, max": 0.1}
    assert cuda_fidelity.same([1, 2, 3], [1, 2, 4]) == 2


@torch.inference_mode()
def test_logits_one_by_one_are_those_of_the_whole_prompt(small_llama):
    exact = load(open_model(small_llama), "cpu", torch.float32)
    fed = tokens(12, SMALL.vocabulary)
    whole = cuda_fidelity.whole(exact, fed, "cpu")
    stepped = cuda_fidelity.stepped(exact, fed, 7, "cpu")
    assert np.allclose(stepped, whole[7:], atol=1e-5)


def test_every_model_is_compared(monkeypatch, small_llama):
    monkeypatch.setattr(cuda_fidelity, "STEPS", 6)
    monkeypatch.setattr(cuda_fidelity, "PROMPTS", (1, 20))
    monkeypatch.setattr(cuda_fidelity, "model_file", lambda kind, shape: small_llama)
    result = cuda_fidelity.measure("cpu", small=True)
    rows = {row["case"]: row for row in result["rows"]}
    assert len(rows) == 8
    for row in rows.values():
        if "agree" in row["case"]:
            assert row["nocopy"] == 6
        else:
            assert 0 < row["nocopy, rms"] < 1e-3 < row["transformers bf16, rms"] < 0.1
            assert row["nocopy, max"] >= row["nocopy, rms"]
    text = report.fidelity(result)
    assert all(case in text for case in rows)
