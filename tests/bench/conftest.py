"""The scripts in bench/ import their neighbours by name, as scripts do; so do their tests."""

import sys
from pathlib import Path

import pytest

from nocopy.bench.llama import Shape, model_file
from nocopy.models.ggml import GGMLType

BENCH = Path(__file__).parents[2] / "bench"
sys.path.append(str(BENCH))

SMALL = Shape("llama-small", 2, 128, 4, 2, 32, 192, 300, tied=True)


@pytest.fixture(scope="session")
def small_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of `SMALL`, in bf16."""
    return model_file(GGMLType.BF16, tmp_path_factory.mktemp("llama"), SMALL)
