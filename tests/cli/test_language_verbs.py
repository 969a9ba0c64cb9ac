"""`nocopy embed`, `tokenize` and `models`."""

import json

import numpy as np
import pytest

from nocopy.session.language import LanguageModel
from tests.cli.run_cli import nocopy_cli
from tests.models.tiny import CONTEXT, GROUPS, HEAD, LAYERS, VOCABULARY, write_tiny
from tests.models.tiny_bert import write_tiny_bert

TEXTS = ["a cat", "the dog sat ."]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    write_tiny_bert(folder)
    return folder


def test_vectors_come_as_json_lines_or_for_numpy(bert, playing, tmp_path):
    flags = ("embed", "-m", str(bert), "--device", playing)
    lines = [json.loads(line) for line in nocopy_cli(*flags, *TEXTS).out.splitlines()]
    assert [line["text"] for line in lines] == TEXTS
    with LanguageModel(bert, device=playing) as model:
        wanted = model.embed(TEXTS)
    assert np.allclose([line["embedding"] for line in lines], wanted)
    assert nocopy_cli(*flags, stdin="a cat\n\nthe dog sat .\n").out == nocopy_cli(*flags, *TEXTS).out
    out = tmp_path / "vectors.npy"
    done = nocopy_cli(*flags, *TEXTS, "-o", str(out))
    assert (done.status, done.out) == (0, "")
    assert np.array_equal(np.load(out), wanted)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-o", "x.txt", "a"], "end in .npy"),
        (["-o", "gone/x.npy", "a"], "gone does not exist"),
        (["-f", "gone"], "No such file"),
        (["a", "-f", "gone"], "give one of them"),
        ([], "no line with text"),
    ],
)
def test_embed_says_what_is_wrong_with_its_arguments(bert, arguments, says, tmp_path):
    done = nocopy_cli("embed", "-m", str(bert), *arguments, cwd=tmp_path)
    assert done.status == 2
    assert says in done.err


def test_a_model_that_generates_gives_no_vectors(tiny_gguf, playing):
    done = nocopy_cli("embed", "-m", str(tiny_gguf), "--device", playing, "a cat")
    assert done.status == 2
    assert "which generates text" in done.err


def test_tokens_are_shown_counted_and_listed(tiny_gguf):
    flags = ("tokenize", "-m", str(tiny_gguf))
    found = nocopy_cli(*flags, "--json", "the heap").json
    ids = [token["id"] for token in found["tokens"]]
    assert found["count"] == len(ids)
    assert "".join(token["text"] for token in found["tokens"]) == "<|endoftext|>the heap"
    assert json.loads(nocopy_cli(*flags, "--ids", stdin="the heap\n").out) == ids
    assert nocopy_cli(*flags, "--show-count", "--no-bos", "the heap").out == f"{len(ids) - 1}\n"
    assert "' heap'" in nocopy_cli(*flags, "the heap").out
    special = nocopy_cli(*flags, "--no-bos", "--ids", "<|im_end|>").out
    assert len(json.loads(special)) == 1
    plain = nocopy_cli(*flags, "--no-bos", "--ids", "--no-parse-special", "<|im_end|>").out
    assert len(json.loads(plain)) > 1


def test_a_model_is_shown_from_its_metadata(tiny_gguf):
    found = nocopy_cli("models", "show", str(tiny_gguf), "--json").json
    assert found["playable"] is True
    assert (found["name"], found["architecture"], found["context"]) == ("Tiny", "llama", CONTEXT)
    assert found["kv_bytes_per_token"]["f16"] == 2 * 2 * LAYERS * GROUPS * HEAD
    assert found["kv_bytes_per_token"]["q8_0"] == 2 * LAYERS * GROUPS * HEAD // 32 * 34
    assert found["bytes"] == tiny_gguf.stat().st_size
    assert found["tokenizer"] == {"kind": "bpe", "tokens": VOCABULARY, "ends": found["tokenizer"]["ends"]}
    assert found["chat_template"] is True
    shown = nocopy_cli("models", "show", str(tiny_gguf)).out
    for line in ("Tiny", "256 tokens", "256 B in f16", "chat template  yes"):
        assert line in shown


def test_a_folder_is_shown_as_well(bert):
    found = nocopy_cli("models", "show", str(bert), "--json").json
    assert (found["architecture"], found["pooling"]) == ("bert", "mean")
    assert "pooled by mean" in nocopy_cli("models", "show", str(bert)).out


def test_a_model_that_nothing_plays_is_shown_all_the_same(tmp_path):
    path = write_tiny(tmp_path / "odd.gguf", general__architecture="quantumnet")
    found = nocopy_cli("models", "show", str(path), "--json").json
    assert found["playable"] is False
    assert "quantumnet" in found["reason"]


def test_what_a_file_says_is_shortened_and_cannot_command_the_terminal(tmp_path):
    path = write_tiny(tmp_path / "m.gguf", general__name="[red]\x1b[2J" + "x" * 10_000, note="y" * 10_000)
    done = nocopy_cli("models", "show", "--metadata", str(path), COLUMNS="4000")
    assert done.status == 0
    assert "\x1b" not in done.out
    assert "[red]" in done.out
    assert "x" * 200 not in done.out
    assert "y" * 200 not in done.out
    assert f"{VOCABULARY} values" in done.out


def test_an_empty_cache_says_how_to_fill_it(tmp_path):
    done = nocopy_cli("models", "ls", HF_HUB_CACHE=str(tmp_path / "none"))
    assert done.status == 0
    assert "nocopy models pull" in done.out
    found = nocopy_cli("models", "ls", "--json", HF_HUB_CACHE=str(tmp_path / "none")).json
    assert found["cache"] == str(tmp_path / "none")


def test_what_is_no_model_is_said(tmp_path):
    done = nocopy_cli("models", "show", str(tmp_path / "gone.gguf"))
    assert done.status == 2
    assert "No such file" in done.err
