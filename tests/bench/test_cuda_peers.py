"""Programs beside nocopy get the same model and the same tokens; what cannot run is named with its reason."""

import json
import os
import subprocess
import sys

import pytest
from peers import contender, llama_cpp, ours, report
from peers.contender import MissingError, Task, decode_case, measured, prefill_case

from nocopy.bench import peer_llama
from nocopy.errors import UsageError
from nocopy.models.load import open_model
from tests.bench.conftest import BENCH, SMALL


@pytest.fixture(scope="module")
def task(small_llama):
    return Task(small_llama, "bf16", "cpu", SMALL.vocabulary, count=12, starts=(3, 20), prompts=(16, 33))


@pytest.fixture(scope="module")
def tokens(task):
    return ours.measure(task)["tokens"]


def torch_runner(task):
    from peers.torch_llama import Llama, Runner

    return Runner(Llama(open_model(task.path), "cpu", task.context), task, compiled=False)


def transformers_runner(task):
    import torch
    from peers.transformers_llama import Runner, load

    return Runner(load(open_model(task.path), "cpu", torch.bfloat16), "cpu")


@pytest.mark.parametrize("make", [torch_runner, transformers_runner])
def test_they_draw_the_tokens_that_nocopy_draws(task, tokens, make, monkeypatch):
    import torch

    monkeypatch.setattr(contender, "TURNS", 1)
    with torch.inference_mode():
        found = measured(make(task), task)
    assert found["tokens"] == tokens
    cases = {decode_case(3), decode_case(20), prefill_case(16), prefill_case(33)}
    assert {case for case, v in found["cases"].items() if v["value"] > 0} == cases


def test_a_longer_cache_changes_nothing(task, tokens):
    import torch

    longer = Task(task.path, "bf16", "cpu", SMALL.vocabulary, count=12, starts=(3,), prompts=(200,))
    with torch.inference_mode():
        runner = torch_runner(longer)
        runner.read(longer.prompt(3))
        first = runner.generate(12)
        runner.read(longer.prompt(200))
        runner.read(longer.prompt(3))
        assert runner.generate(12) == first
    assert " ".join(map(str, first)) == tokens


def run(tmp_path, *arguments, **environment):
    out = tmp_path / "result.json"
    command = [sys.executable, str(BENCH / "cuda_peers.py"), "--device", "cpu", "--shape", "small"]
    command += ["--count", "4", "--starts", "3", "--prompts", "8", "--types", "bf16", "--json", str(out)]
    command += arguments
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path)} | environment
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), done.stdout


def test_who_is_not_there_is_named(tmp_path):
    environment = {"PATH": str(tmp_path), "NOCOPY_LLAMA_BENCH": ""}
    result, text = run(tmp_path, "--only", "nocopy", "llama.cpp", **environment)
    assert [m["contender"] for m in result["measured"]] == ["nocopy"]
    (missing,) = result["missing"]
    assert (missing["contender"], missing["type"]) == ("llama.cpp", "bf16")
    assert "llama-bench was not found" in missing["why"]
    assert "NOCOPY_LLAMA_BENCH" in text
    shown = subprocess.run(
        [sys.executable, str(BENCH / "cuda_peers.py"), "--show", str(tmp_path / "result.json")],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert shown.stdout == text


def test_who_takes_too_long_is_named(tmp_path):
    result, _ = run(tmp_path, "--only", "nocopy", "--limit", "0.01")
    assert result["measured"] == []
    assert result["missing"][0]["why"] == "not done within 0 s"


def program(folder, text):
    path = folder / "llama-bench"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_llama_bench_without_cuda_is_refused(tmp_path, monkeypatch, task):
    found = [{"backends": "CPU", "build_commit": "1", "n_depth": 3, "samples_ts": [1.0]}]
    path = program(tmp_path, f"echo '{json.dumps(found)}'")
    monkeypatch.setenv(peer_llama.VARIABLE, str(path))
    on_cuda = Task(task.path, "bf16", "cuda", SMALL.vocabulary)
    with pytest.raises(MissingError, match="has CPU"):
        llama_cpp.measure(on_cuda)


def test_a_llama_bench_that_fails_says_so(tmp_path):
    path = program(tmp_path, "echo no such model >&2; exit 3")
    with pytest.raises(UsageError, match="status 3: no such model"):
        peer_llama.run(str(path), tmp_path / "model.gguf", {"p": 1})


def measured_row(name, per_token, per_second):
    cases = {
        "decode after 8": {"value": per_token, "unit": "ms a token"},
        "prefill 64": {"value": per_second, "unit": "tokens/s"},
    }
    return {"contender": name, "type": "bf16", "version": "1", "how": "so", "cases": cases}


RESULT = {
    "machine": {"device": "a GPU", "system": "Linux"},
    "model": "llama",
    "read GB/s": 4000.0,
    "floor": {"bf16": {"bytes a token": 2 * 10**9, "ms": 0.5}},
    "measured": [measured_row("nocopy", 1.0, 3000.0), measured_row("other", 2.0, 6000.0)],
    "missing": [{"contender": "third", "type": t, "why": "not installed"} for t in ("bf16", "q8_0")],
}


def test_ratios_above_one_mean_that_nocopy_is_faster():
    text = report.markdown(RESULT)
    assert "| other 1 | 2.000 (2.00) | 6,000 (0.50) | so |" in text
    assert "| nocopy 1 | 1.000 | 3,000 | so |" in text
    assert "| floor | 0.500 |" in text
    assert "- third in bf16 and Q8_0: not installed" in text


def test_a_picture_is_drawn(tmp_path):
    report.draw(RESULT, tmp_path / "peers.png")
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")
