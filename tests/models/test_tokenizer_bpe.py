"""Byte-level BPE and WordPiece, from GGUF and from tokenizer.json, with vocabularies trained here."""

import json
import random
import time

import numpy as np
import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from nocopy.errors import MetadataError, ModelFileError, TokenizerError, UnsupportedModelError, UsageError
from nocopy.models.metadata import Metadata
from nocopy.models.pretokenizers import PRE_TOKENIZERS, pre_tokenizer
from nocopy.models.tokenizer_gguf import load_gguf_tokenizer
from nocopy.models.tokenizer_json import load_folder_tokenizer

CORPUS = [line for name in ("random", "heapq", "textwrap") for line in __import__(name).__doc__.splitlines()]
NASTY = [
    "",
    " ",
    "\n",
    " \n\t \r\n",
    "Hello, y'all! I'VE 12345 cats; don't.",
    "x" * 300,
    "été naïve ÅÄÖ",
    "漢字かな交じり文",
    "한국어 텍스트",
    "привет мир",
    "مرحبا بالعالم",
    "🦙👩\u200d👩\u200d👧 🇨🇭",
    "a\u0301e\u0308",
    "\u0000\u0001\ufffe",
    "def f(x):\n    return x\n\n\n",
    "3.14159e-10 1,000,000",
    "   leading",
    "trailing   ",
    "<|end|> <|user|>",
    "CamelCaseWORDS snake_case",
    "''' \"\"\"",
    "ÀÖØßöøƺǄʓ ʕΩ ﬀＡｚ 𐐀",
]


def train():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=["<|start|>", "<|end|>"],
    )  # fmt: skip
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@pytest.fixture(scope="module")
def library():
    return train()


def as_metadata(library, **changes):
    state = json.loads(library.to_str())
    vocabulary = library.get_vocab(with_added_tokens=True)
    texts = sorted(vocabulary, key=vocabulary.get)
    types = np.array([3 if text in ("<|start|>", "<|end|>") else 1 for text in texts], np.int32)
    values = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in state["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": vocabulary["<|start|>"],
        "tokenizer.ggml.eos_token_id": vocabulary["<|end|>"],
    } | changes
    return Metadata({key: value for key, value in values.items() if value is not None}, "gpt2", "trained")


def test_gguf_and_json_and_the_library_agree(library, tmp_path):
    library.save(str(tmp_path / "tokenizer.json"))
    of_gguf, of_json = load_gguf_tokenizer(as_metadata(library)), load_folder_tokenizer(tmp_path)
    assert of_gguf.size == of_json.size == library.get_vocab_size()
    assert of_gguf.pieces() == of_json.pieces()
    for text in [*NASTY, *CORPUS]:
        expected = library.encode(text, add_special_tokens=False).ids
        assert of_gguf.encode(text, add_special=False, parse_special=True) == expected
        assert of_json.encode(text, add_special=False, parse_special=True) == expected
        forged = of_gguf.encode(text, add_special=False)
        assert forged == of_json.encode(text, add_special=False)
        assert not of_gguf.special_ids & set(forged)
        for tokenizer in (of_gguf, of_json):
            assert tokenizer.decode(forged) == text


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_every_pre_tokenizer_keeps_every_byte(library, name):
    bare = {"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_sep_token": False}
    tokenizer = load_gguf_tokenizer(as_metadata(library, **{"tokenizer.ggml.pre": name}, **bare))
    normal = normalizers.NFC() if pre_tokenizer(name).nfc else None
    for text in NASTY:
        expected = normal.normalize_str(text) if normal else text
        assert tokenizer.decode(tokenizer.encode(text)) == expected


def words(name, text):
    cuts = [pre_tokenizers.Split(Regex(regex), "isolated") for regex in pre_tokenizer(name).regexes]
    return [word for word, _ in pre_tokenizers.Sequence(cuts).pre_tokenize_str(text)]


def test_gpt2_words_are_those_of_the_library():
    peer = pre_tokenizers.Split(Regex(pre_tokenizer("gpt-2").regexes[0]), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    rng = random.Random(1)
    for _ in range(300):
        text = "".join(rng.choices("ab 'sltd\n\t1.é漢\u00a0", k=rng.randrange(1, 30)))
        assert [span for _, span in peer.pre_tokenize_str(text)] == [
            span for _, span in byte_level.pre_tokenize_str(text)
        ]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("llama-bpe", "I'VE 12345 x\n\n y", ["I", "'VE", " ", "123", "45", " x", "\n\n", " y"]),
        ("qwen2", "I'm 123 a", ["I", "'m", " ", "1", "2", "3", " a"]),
        ("gpt-4o", "camelCase it's 1234", ["camel", "Case", " it's", " ", "123", "4"]),
        ("tekken", "camelCase 12", ["camel", "Case", " ", "1", "2"]),
        ("starcoder", "a 12", ["a", " ", "1", "2"]),
        ("deepseek-llm", "Grüße 漢字 12 мир", ["Gr", "üß", "e", " ", "漢字", " ", "12", " мир"]),
        ("deepseek-v3", "foo.bar 1234", ["foo", ".bar", " ", "123", "4"]),
        ("falcon", "a+b 1234", ["a", "+", "b", " ", "123", "4"]),
        ("bloom", "a b, c", ["a", " b", ",", " c"]),
        ("kimi-k2", "漢字abc 12", ["漢字", "abc", " ", "12"]),
    ],
)
def test_words_of_a_pre_tokenizer(name, text, expected):
    assert words(name, text) == expected


def test_words_that_are_tokens_are_taken_whole_where_the_kind_says_so(library):
    texts = list(as_metadata(library).strings("tokenizer.ggml.tokens"))
    texts.append("Ġunmergeable")
    changes = {"tokenizer.ggml.tokens": texts, "tokenizer.ggml.token_type": None}
    whole = load_gguf_tokenizer(as_metadata(library, **changes, **{"tokenizer.ggml.pre": "llama-bpe"}))
    assert whole.encode(" unmergeable", add_special=False) == [len(texts) - 1]
    assert whole.encode("a")[0] == whole.special["bos"]  # the default of llama-bpe
    pieces = load_gguf_tokenizer(as_metadata(library, **changes))
    assert len(pieces.encode(" unmergeable", add_special=False)) > 1


def test_files_that_cannot_be_used(library):
    for changes, error, says in (
        ({"tokenizer.ggml.model": "t5"}, UnsupportedModelError, "kind 't5'; known are gpt2, llama, bert"),
        ({"tokenizer.ggml.pre": "unheard"}, UnsupportedModelError, "pre-tokenizer 'unheard'"),
        ({"tokenizer.ggml.pre": None}, MetadataError, "does not name its pre-tokenizer"),
        ({"tokenizer.ggml.merges": None}, MetadataError, "tokenizer.ggml.merges"),
        ({"tokenizer.ggml.merges": ["a"]}, TokenizerError, "must be two tokens"),
        ({"tokenizer.ggml.merges": ["nothing here"]}, TokenizerError, "do not fit"),
        ({"tokenizer.ggml.token_type": np.zeros(3, np.int32)}, MetadataError, "elements"),
        ({"tokenizer.ggml.bos_token_id": None, "tokenizer.ggml.add_bos_token": True}, TokenizerError, "bos"),
    ):
        with pytest.raises(error, match=says):
            load_gguf_tokenizer(as_metadata(library, **changes))
    named = load_gguf_tokenizer(as_metadata(library, **{"tokenizer.ggml.pre": None}), pre="gpt-2")
    assert named.decode(named.encode("ok")) == "ok"


def test_bad_arguments(library):
    tokenizer = load_gguf_tokenizer(as_metadata(library))
    for token in (-1, tokenizer.size):
        with pytest.raises(TokenizerError, match="ids 0 to"):
            tokenizer.decode([token])
    with pytest.raises(TokenizerError, match="lone surrogate"):
        tokenizer.encode("a\ud800")


def test_a_character_comes_out_with_its_last_byte(library):
    tokenizer = load_gguf_tokenizer(as_metadata(library))
    ids = tokenizer.encode("🦙!", add_special=False)
    stream = tokenizer.stream()
    assert [stream.push(token) for token in ids] == ["", "", "", "🦙", "!"]
    stream = tokenizer.stream()
    for token in ids[:2]:
        assert stream.push(token) == ""
    assert stream.finish() == "\ufffd"
    assert tokenizer.decode_bytes(ids[:2]) == "🦙".encode()[:2]


def test_the_longest_special_token_wins_and_thousands_of_them_cost_little(library):
    texts = list(as_metadata(library).strings("tokenizer.ggml.tokens"))
    extra = [f"<|extra_{i}|>" for i in range(5000)] + ["<|extra_1|>+"]
    types = np.array([3 if t in ("<|start|>", "<|end|>") else 1 for t in texts] + [4] * len(extra), np.int32)
    tokenizer = load_gguf_tokenizer(
        as_metadata(library, **{"tokenizer.ggml.tokens": texts + extra, "tokenizer.ggml.token_type": types})
    )
    n = len(texts)
    assert tokenizer.encode("<|extra_1|>+<|extra_10|><|extra_1|>", add_special=False) == [
        n + 5000,
        n + 10,
        n + 1,
    ]
    start = time.process_time()
    tokenizer.encode("<|extra <x|> " * 20_000, add_special=False)
    assert time.process_time() - start < 3


def test_phi3_swallows_white_space_after_its_special_tokens(library):
    ids = {"general.name": "Phi-3 mini"}
    tokenizer = load_gguf_tokenizer(as_metadata(library, **ids))
    plain = load_gguf_tokenizer(as_metadata(library))
    text = "<|end|>\n a"
    end = plain.token_id("<|end|>")
    assert tokenizer.encode(text, parse_special=True) == [end, *plain.encode("a")]
    assert plain.encode(text, parse_special=True) == [end, *plain.encode("\n a")]


def wordpiece_metadata(words, **changes):
    texts = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words]
    values = {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": np.array([3] * 4 + [1] * len(words), np.int32),
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.cls_token_id": 2,
        "tokenizer.ggml.seperator_token_id": 3,
    } | changes
    return Metadata(values, "bert", "trained")


def test_wordpiece_folds_case_unless_the_vocabulary_has_capitals():
    folding = load_gguf_tokenizer(wordpiece_metadata(["▁paris", "▁is", "big", "▁big"]))
    assert folding.encode("Paris is ISBIG") == [2, 4, 5, 5, 6, 3]
    assert folding.decode(folding.encode("Páris  is big")) == "paris is big"
    cased = load_gguf_tokenizer(wordpiece_metadata(["▁Paris", "▁paris"]))
    assert cased.encode("Paris paris PARIS", add_special=False) == [4, 5, 1]
    with pytest.raises(TokenizerError, match="marks words"):
        load_gguf_tokenizer(wordpiece_metadata(["paris"]))


def save(folder, library, **config):
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return load_folder_tokenizer(folder)


def test_json_special_tokens_and_ends(library, tmp_path):
    local = Tokenizer.from_str(library.to_str())
    local.add_tokens([AddedToken("<think>", special=False)])
    start, end = local.token_to_id("<|start|>"), local.token_to_id("<|end|>")
    local.post_processor = processors.TemplateProcessing(
        single="<|start|> $A", pair="$A $B", special_tokens=[("<|start|>", start)]
    )
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [end, 7]}))
    tokenizer = save(
        tmp_path, local, bos_token="<|start|>", eos_token={"content": "<|end|>"}, add_eos_token=True
    )
    assert tokenizer.special == {"bos": start, "eos": end}
    assert tokenizer.end_ids == {end, 7}
    plain = tokenizer.encode("hi", add_special=False)
    assert tokenizer.encode("hi") == [start, *plain, end]
    assert tokenizer.encode("") == [start, end]
    assert tokenizer.token_id("<think>") in tokenizer.encode("a<think>b")
    assert tokenizer.decode(tokenizer.encode("a<think>b")) == "a<think>b"


def test_json_with_sentencepiece_conventions(tmp_path):
    vocabulary = {"<unk>": 0, **{f"<0x{i:02X}>": i + 1 for i in range(256)}, "▁": 257, "a": 258, "b": 259,
                  "▁a": 260, "ab": 261}  # fmt: skip
    library = Tokenizer(
        models.BPE(vocabulary, [("▁", "a"), ("a", "b")], byte_fallback=True, unk_token="<unk>")
    )
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = save(tmp_path, library)
    assert tokenizer.kind == "spm"
    for text in ("ab a", " a", "🦙 a\n", "a  b"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        stream = tokenizer.stream(continues=False)
        assert "".join(map(stream.push, ids)) + stream.finish() == library.decode(ids) == text


def test_json_wordpiece(tmp_path):
    library = Tokenizer(models.WordPiece({"[UNK]": 0, "un": 1, "##able": 2, "is": 3}, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece("##", cleanup=False)
    tokenizer = save(tmp_path, library)
    assert tokenizer.decode(tokenizer.encode("unable is")) == "unable is"


def test_json_files_that_cannot_be_used(tmp_path, library):
    with pytest.raises(UsageError, match="No such file"):
        load_folder_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match="cannot be used"):
        load_folder_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"")
    with pytest.raises(TokenizerError, match="cannot be used"):
        load_folder_tokenizer(tmp_path)
    with open(tmp_path / "tokenizer.json", "wb") as file:
        file.truncate(2**30)
    with pytest.raises(ModelFileError, match="accepted"):
        load_folder_tokenizer(tmp_path)
    odd = Tokenizer.from_str(library.to_str())
    odd.decoder = decoders.CTC()
    with pytest.raises(UnsupportedModelError, match="CTC"):
        save(tmp_path, odd)
