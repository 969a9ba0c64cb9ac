"""Vectors of texts agree with transformers."""

import numpy as np
import pytest
import torch

from nocopy.errors import UsageError
from nocopy.session.language import LanguageModel
from tests.models.tiny_bert import WORDS, write_tiny_bert

TEXTS = ["a cat sat on the mat .", "Dogs", "the " * 40]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    return folder, write_tiny_bert(folder)


@pytest.fixture
def model(bert, playing):
    with LanguageModel(bert[0], device=playing) as opened:
        yield opened


def test_vectors_agree_with_transformers(bert, model):
    for text in TEXTS:
        tokens = model.tokenizer.encode(text)
        assert tokens[0] == WORDS.index("[CLS]")
        assert tokens[-1] == WORDS.index("[SEP]")
        with torch.no_grad():
            wanted = bert[1](torch.tensor([tokens])).last_hidden_state[0].mean(0).numpy()
        got = model.embed(text, normalize=False)
        assert np.abs(got - wanted).max() / np.abs(wanted).max() <= 1e-4
        assert np.allclose(model.embed(text), got / np.linalg.norm(got), atol=1e-6)


def test_several_texts_are_rows(model):
    assert np.array_equal(model.embed(TEXTS), np.stack([model.embed(text) for text in TEXTS]))
    assert model.embed([]).shape == (0, model.config.width)


def test_a_text_that_is_too_long_is_refused_with_both_lengths(model):
    with pytest.raises(UsageError, match=r"text of 102 tokens .* takes 1 to 64"):
        model.embed("the " * 100)


def test_an_embedding_model_generates_no_text(model):
    with pytest.raises(UsageError, match="is an embedding model"):
        model.generate("the")
