"""Against SentencePiece itself, with vocabularies trained here."""

import io
import pydoc
import random
import time

import numpy as np
import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from nocopy.errors import TokenizerError
from nocopy.models.metadata import Metadata
from nocopy.models.tokenizer_gguf import load_gguf_tokenizer

TYPES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6}  # SentencePiece and GGUF number their types alike


@pytest.fixture(scope="module")
def text():
    modules = ("os", "json", "re", "string", "random", "heapq", "typing", "textwrap")
    return "\n".join(pydoc.render_doc(name, renderer=pydoc.plaintext) for name in modules)


@pytest.fixture(scope="module")
def trained(text):
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()), model_writer=out, model_type="bpe", vocab_size=1200,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        user_defined_symbols=["<|user|>", "    "], split_digits=True, allow_whitespace_only_pieces=True,
        minloglevel=2, num_threads=1,
    )  # fmt: skip
    return out.getvalue()


def as_gguf(proto, **changes):
    pieces = sentencepiece_model_pb2.ModelProto.FromString(proto).pieces
    # GGUF files hold user-defined tokens with their spaces as they are written in text.
    texts = [p.piece.replace("\u2581", " ") if p.type == 4 else p.piece for p in pieces]
    values = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": np.array([p.score for p in pieces], np.float32),
        "tokenizer.ggml.token_type": np.array([TYPES[p.type] for p in pieces], np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    } | changes
    return load_gguf_tokenizer(Metadata(values, "llama", "trained"))


def samples(text, count=400):
    rng = random.Random(11)
    alphabet = " \u2581\n\t aaab==--__.(),:0123456789éß漢字🦙\u200d\x00"
    for _ in range(count):
        start = rng.randrange(len(text))
        yield text[start : start + rng.randrange(1, 120)]
        yield "".join(rng.choices(alphabet, k=rng.randrange(1, 40)))
        yield rng.choice(alphabet) * rng.randrange(1, 70)


def plain(sample):
    # Special tokens are cut out before the merge sees them; SentencePiece does that inside.
    return "<|user|>" not in sample and "    " not in sample and "\u2581\u2581\u2581\u2581" not in sample


def test_ids_are_those_of_sentencepiece(trained, text):
    peer = sentencepiece.SentencePieceProcessor(model_proto=trained)
    tokenizer = as_gguf(trained)
    compared = 0
    for sample in filter(plain, samples(text)):
        assert tokenizer.encode(sample, add_special=False) == peer.encode(sample), repr(sample)
        if "\u2581" not in sample:  # which SentencePiece cannot tell from a space
            assert tokenizer.decode(peer.encode(sample)) == sample
        compared += 1
    assert compared > 600


@pytest.mark.parametrize("kinds", ["ties", "unused"])
def test_equal_scores_and_unused_pieces(trained, text, kinds):
    proto = sentencepiece_model_pb2.ModelProto.FromString(trained)
    rng = random.Random(3)
    for piece in proto.pieces:
        if piece.type == 1 and len(piece.piece) > 1:
            if kinds == "ties":
                piece.score = float(rng.randrange(-4, 0))
            elif rng.random() < 0.2:
                piece.type = 5
    changed = proto.SerializeToString()
    peer = sentencepiece.SentencePieceProcessor(model_proto=changed)
    tokenizer = as_gguf(changed)
    for sample in filter(plain, samples(text)):
        assert tokenizer.encode(sample, add_special=False) == peer.encode(sample), repr(sample)


def test_user_defined_tokens_are_found_in_any_text(trained):
    tokenizer = as_gguf(trained)
    user = tokenizer.token_id("<|user|>")
    spaces = tokenizer.token_id("    ")
    ids = tokenizer.encode("x<|user|>y    z", add_special=False)
    assert ids.count(user) == ids.count(spaces) == 1
    assert tokenizer.piece(spaces) == b"    "


def test_space_before_a_text(trained):
    tokenizer = as_gguf(trained, **{"tokenizer.ggml.add_space_prefix": False})
    for sample in ("a", " a", "", "  "):
        assert tokenizer.decode(tokenizer.encode(sample)) == sample
    assert tokenizer.encode("a") != as_gguf(trained).encode("a")
    stream = as_gguf(trained).stream()  # continues a text, so the space belongs to it
    assert stream.push(as_gguf(trained).encode("the", add_special=False)[0]).startswith(" ")


def test_a_long_text_without_spaces_takes_no_square_time(trained):
    tokenizer = as_gguf(trained)
    seconds = []
    for n in (20_000, 80_000):
        start = time.process_time()
        ids = tokenizer.encode("=" * n, add_special=False)
        seconds.append(time.process_time() - start)
        assert tokenizer.decode(ids) == "=" * n
    assert seconds[1] < 8 * seconds[0]


def test_vocabularies_that_contradict_themselves(trained):
    good = as_gguf(trained)
    n = good.size
    pieces = [good.piece(i).decode(errors="replace") for i in range(n)]
    for changes, says in (
        ({"tokenizer.ggml.bos_token_id": n}, "the vocabulary has"),
        ({"tokenizer.ggml.scores": np.full(n, np.nan, np.float32)}, "not a number"),
        ({"tokenizer.ggml.tokens": ["same"] * n}, "'same' more than once"),
        ({"tokenizer.ggml.tokens": [f"t{i}" for i in range(n)]}, "written <0xNN>"),
    ):
        with pytest.raises(TokenizerError, match=says):
            as_gguf(trained, **changes)
    assert len(pieces) == n
