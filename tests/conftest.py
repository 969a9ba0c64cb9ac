"""Hypothesis profiles: `quick` unless `--hypothesis-profile=thorough` is given."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "quick", max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.register_profile("thorough", settings.get_profile("quick"), max_examples=3000)
settings.load_profile("quick")


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of 360 kB with random weights, a trained tokenizer and a chat template."""
    from tests.models.tiny import write_tiny

    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def playing(tiny_gguf: Path) -> str:
    """The fastest device without a GPU that plays language models in this build."""
    from nocopy.errors import DeviceError
    from nocopy.session.language import LanguageModel

    try:
        with LanguageModel(tiny_gguf, device="cpu") as model:
            model.session().append([1])
    except DeviceError:
        return "reference"
    return "cpu"
