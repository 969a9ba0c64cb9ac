"""A BERT folder as GGUF: the same vectors, the same tokens, and keys that other readers know."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nocopy.errors import UnsupportedModelError, UsageError
from nocopy.models import open_model
from nocopy.models.ggml import GGMLType
from nocopy.session.language import LanguageModel
from tests.models import random_models
from tests.models.tiny_bert import WORDS, write_tiny_bert
from tools.bert_to_gguf import convert
from tools.guest_compiler import ROOT

TEXTS = ["a cat sat on the mat .", "Dogs", "[SEP] the mats"]
words = st.sampled_from([w.removeprefix("##") for w in WORDS] + ["mats", "Cat", "ünïcode", "xyz"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    write_tiny_bert(folder)
    return folder


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    out = folder.with_suffix(".gguf")
    convert(folder, out, GGMLType.F32)
    return out


def test_vectors_are_the_same(folder: Path, file: Path, playing: str) -> None:
    with LanguageModel(folder, device=playing) as one, LanguageModel(file, device=playing) as other:
        assert np.allclose(one.embed(TEXTS), other.embed(TEXTS), atol=1e-6)


@pytest.mark.parametrize("kind", [GGMLType.F16, GGMLType.BF16, GGMLType.Q8_0])
def test_smaller_types_stay_near(folder: Path, tmp_path: Path, playing: str, kind: GGMLType) -> None:
    size = convert(folder, tmp_path / "small.gguf", kind)
    assert size == (tmp_path / "small.gguf").stat().st_size
    with (
        LanguageModel(folder, device=playing) as one,
        LanguageModel(tmp_path / "small.gguf", device=playing) as b,
    ):
        cosines = (one.embed(TEXTS) * b.embed(TEXTS)).sum(1)
    assert cosines.min() > 0.99


@given(st.lists(words, max_size=12).map(" ".join))
def test_tokens_are_the_same(folder: Path, file: Path, text: str) -> None:
    one, other = open_model(folder), open_model(file)
    try:
        assert other.tokenizer.encode(text) == one.tokenizer.encode(text)
    finally:
        one.close()
        other.close()


def test_the_gguf_package_finds_what_llama_cpp_reads(file: Path) -> None:
    reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "bert"
    assert fields["bert.block_count"] == random_models.COMMON["num_hidden_layers"]
    assert fields["bert.pooling_type"] == 1
    assert fields["bert.attention.causal"] is False
    assert fields["tokenizer.ggml.model"] == "bert"
    assert fields["tokenizer.ggml.tokens"][WORDS.index("cat")] == "\u2581cat"
    assert fields["tokenizer.ggml.tokens"][WORDS.index("##s")] == "s"
    assert fields["tokenizer.ggml.cls_token_id"] == WORDS.index("[CLS]")
    names = {tensor.name for tensor in reader.tensors}
    wanted = {"token_embd.weight", "position_embd.weight", "token_types.weight", "token_embd_norm.bias"}
    wanted |= {f"blk.0.{n}.weight" for n in ("attn_q", "attn_output_norm", "ffn_up", "layer_output_norm")}
    assert wanted <= names


def test_other_models_are_refused(tmp_path: Path) -> None:
    random_models.save(random_models.make_decoder("llama-2"), tmp_path / "llama")
    with pytest.raises(UnsupportedModelError, match="holds a llama model, not a BERT"):
        convert(tmp_path / "llama", tmp_path / "out.gguf", GGMLType.F16)
    assert not (tmp_path / "out.gguf").exists()
    with pytest.raises(UsageError):
        convert(tmp_path / "nowhere", tmp_path / "out.gguf", GGMLType.F16)


def test_from_the_command_line(folder: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "tools" / "bert_to_gguf.py"),
        str(folder),
        str(tmp_path / "out.gguf"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "out.gguf: 0." in done.stdout
    command[2] = "nowhere"
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "error: " in done.stderr
