"""The models that benchmarks make: they open, and their numbers repeat late and differ between rows."""

from dataclasses import replace

import numpy as np
import pytest

from nocopy.bench import llama
from nocopy.bench.llama import LLAMA_1B, LLAMA_8B, Q4_K_M, Mix, model_file, read_a_token
from nocopy.models.ggml import GGMLType
from nocopy.models.load import open_model
from tests.bench.conftest import SMALL


@pytest.mark.parametrize("kind", [GGMLType.BF16, GGMLType.Q8_0, GGMLType.Q4_0])
def test_a_model_has_its_shape(tmp_path, kind):
    path = model_file(kind, tmp_path, SMALL)
    model = open_model(path)
    assert (model.config.layers, model.config.width, model.config.head) == (2, 128, 32)
    assert {model.weights[name].shape for name in model.weights} == {dims for _, dims in SMALL.tensors()}
    assert model.weights["blk.1.ffn_down.weight"].type is kind
    model.close()
    written = path.stat().st_mtime_ns
    assert model_file(kind, tmp_path, SMALL).stat().st_mtime_ns == written


def test_a_mixed_model_has_its_better_matrices_where_they_count(tmp_path):
    better = [i for i in range(16) if Q4_K_M.of(f"blk.{i}.attn_v.weight", LLAMA_1B) is GGMLType.Q6_K]
    assert better == [0, 1, 4, 7, 10, 13, 14, 15]
    mix = Mix("mixed", GGMLType.Q4_0, GGMLType.Q8_0)
    model = open_model(model_file(mix, tmp_path, SMALL))
    types = {name: model.weights[name].type.name for name in model.weights}
    model.close()
    assert (types["token_embd.weight"], types["blk.1.attn_v.weight"]) == ("Q8_0", "Q8_0")
    assert (types["blk.0.attn_v.weight"], types["blk.1.attn_q.weight"]) == ("Q4_0", "Q4_0")
    assert types["blk.1.attn_norm.weight"] == "F32"


def test_no_two_rows_of_a_matrix_are_equal(tmp_path, monkeypatch):
    monkeypatch.setattr(llama, "NOISE_BLOCKS", 331)  # a prime, far fewer than the embedding has
    model = open_model(model_file(GGMLType.BF16, tmp_path, SMALL))
    rows = model.weights.dequantize("token_embd.weight")
    assert len(np.unique(rows, axis=0)) == len(rows)
    model.close()


def test_an_embedding_that_is_not_the_head_is_not_read_for_a_token(tmp_path, small_llama):
    tied = open_model(small_llama)
    assert read_a_token(tied) == tied.weights.nbytes
    untied = open_model(model_file(GGMLType.BF16, tmp_path, replace(SMALL, tied=False)))
    assert untied.weights.nbytes > tied.weights.nbytes
    assert read_a_token(untied) == tied.weights.nbytes
    tied.close()
    untied.close()


def test_parameters_are_those_of_the_models_that_the_shapes_are_named_after():
    def parameters(shape):
        return sum(int(np.prod(dims)) for _, dims in shape.tensors())

    assert round(parameters(LLAMA_1B) / 1e9, 2) == 1.24
    assert round(parameters(LLAMA_8B) / 1e9, 2) == 8.03
