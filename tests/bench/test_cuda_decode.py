"""What `bench/cuda_decode.py` draws of its results; what it measures needs a GPU."""

import json
import subprocess
import sys

import pytest

from tests.bench.conftest import BENCH

ROWS = [
    {"case": "weights read once at that speed", "value": 0.585, "unit": "ms"},
    {"case": "greedy, fed ahead, after 160 tokens", "value": 0.813, "unit": "ms a token"},
]


def run(*arguments):
    command = [sys.executable, BENCH / "cuda_decode.py", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def test_results_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    for kind in ("bf16", "q4_k"):
        (tmp_path / f"cuda_decode-{kind}.json").write_text(json.dumps(ROWS))
    done = run("--show", tmp_path, "--plot", tmp_path / "decode.png")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "decode.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_needs_a_file_to_go_to(tmp_path):
    done = run("--show", tmp_path)
    assert done.returncode == 2
    assert "--plot" in done.stderr
