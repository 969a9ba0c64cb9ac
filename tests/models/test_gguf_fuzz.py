"""A few thousand of the cases that tools/fuzz_gguf.py makes; a crash ends its process, not the tests."""

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location(
        "fuzz_gguf", Path(__file__).parents[2] / "tools" / "fuzz_gguf.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_broken_files_are_refused_or_read(fuzz, tmp_path):
    outcome = fuzz.Outcome()
    for start in range(0, 3000, 1000):
        outcome.add(fuzz.run_chunk(42, start, 1000, str(tmp_path)))
    assert outcome.failures == []
    assert outcome.cases == 3000
    assert outcome.worst_seconds < fuzz.SLOWEST
    assert outcome.worst_allocation_ratio <= 2
    # The cases reach deep: files that still open, and most kinds of defects.
    assert outcome.opened > 100
    assert len(outcome.refused) > 12


def test_the_valid_files_open(fuzz, tmp_path):
    for number, data in enumerate(fuzz.valid_files(tmp_path)):
        path = tmp_path / f"{number}.gguf"
        path.write_bytes(data)
        fuzz.exercise(path, tokenizer=number == 1)
