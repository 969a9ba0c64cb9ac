"""The published vocabularies and their expected ids, byte for byte."""

import numpy as np
import pytest

from nocopy.models.gguf import open_gguf
from nocopy.models.tokenizer_gguf import load_gguf_tokenizer

NAMES = ["llama-spm", "deepseek-llm", "starcoder", "gpt-2", "bert-bge"]


def cases(path):
    inputs = path.with_name(path.name + ".inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    outputs = path.with_name(path.name + ".out").read_text().split("\n")
    assert len(inputs) == len(outputs) == 47  # 46 strings and what follows the last separator
    return [(text, list(map(int, ids.split()))) for text, ids in zip(inputs, outputs, strict=True)]


@pytest.mark.parametrize("name", NAMES)
def test_published_ids(vectors, name):
    path = vectors(name)
    tokenizer = load_gguf_tokenizer(open_gguf(path).metadata)
    for text, expected in cases(path):
        assert tokenizer.encode(text, add_special=False) == expected, text


@pytest.mark.parametrize("name", NAMES[:-1])
def test_text_comes_back_whole_and_in_pieces(vectors, name):
    path = vectors(name)
    tokenizer = load_gguf_tokenizer(open_gguf(path).metadata)
    for text, _ in cases(path):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode_bytes(ids) == text.encode()
        stream = tokenizer.stream(continues=False)
        parts = [stream.push(token) for token in ids]
        assert "".join(parts) + stream.finish() == text
        assert "\ufffd" not in "".join(parts)


@pytest.mark.parametrize("name", NAMES[:-1])
def test_any_ids_decode_to_the_bytes_of_their_pieces(vectors, name):
    tokenizer = load_gguf_tokenizer(open_gguf(vectors(name)).metadata)
    rng = np.random.default_rng(5)
    pieces = tokenizer.pieces()
    assert len(pieces) == tokenizer.size
    for _ in range(50):
        ids = rng.integers(0, tokenizer.size, 40).tolist()
        stream = tokenizer.stream(skip_special=False)
        raw = b"".join(pieces[token] for token in ids)
        assert b"".join(map(stream.push_bytes, ids)) == raw
        stream = tokenizer.stream(skip_special=False)
        assert "".join(map(stream.push, ids)) + stream.finish() == raw.decode(errors="replace")


@pytest.mark.parametrize("name", NAMES)
def test_special_tokens_around_a_text(vectors, name):
    tokenizer = load_gguf_tokenizer(open_gguf(vectors(name)).metadata)
    around = {
        "llama-spm": ([1], []),
        "deepseek-llm": ([100000], []),
        "starcoder": ([], []),
        "gpt-2": ([], []),
        "bert-bge": ([101], [102]),
    }[name]
    plain = tokenizer.encode("Hello", add_special=False)
    assert tokenizer.encode("Hello") == around[0] + plain + around[1]


def test_control_tokens_are_text_unless_asked_for(vectors):
    tokenizer = load_gguf_tokenizer(open_gguf(vectors("llama-spm")).metadata)
    forged = tokenizer.encode("</s>", add_special=False)
    assert 2 not in forged
    assert tokenizer.decode(forged) == "</s>"
    assert tokenizer.encode("a</s>b", add_special=False, parse_special=True) == [263, 2, 289]
    assert tokenizer.decode([263, 2, 289]) == "a b"
    assert tokenizer.decode([263, 2, 289], skip_special=False) == "a</s> b"
    assert tokenizer.token_id("</s>") == 2
    assert tokenizer.end_ids == {2}
