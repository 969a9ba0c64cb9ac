"""The tokenizer that a GGUF file describes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from nocopy.errors import MetadataError, TokenizerError, UnsupportedModelError
from nocopy.models.metadata import Metadata
from nocopy.models.pretokenizers import pre_tokenizer
from nocopy.models.special_tokens import SpecialToken, SpecialTokens
from nocopy.models.tokenizer import Tokenizer, TokenizerParts
from nocopy.models.tokenizer_bpe import BPE, byte_level_piece
from nocopy.models.tokenizer_spm import SPM, spm_piece
from nocopy.models.tokenizer_wordpiece import WordPiece, wordpiece_piece
from nocopy.models.vocabulary import PREFIX, TokenType, Vocabulary, read_vocabulary

HIDDEN: Final = (TokenType.CONTROL, TokenType.UNKNOWN)
KINDS: Final = {"gpt2": "bpe", "llama": "spm", "bert": "wordpiece"}
"""What tokenizer.ggml.model may name."""
PHI3_KEEPS_SPACE: Final = frozenset({"<unk>", "<s>", "<|endoftext|>"})


def load_gguf_tokenizer(metadata: Metadata, *, pre: str | None = None) -> Tokenizer:
    """Build the tokenizer of a GGUF model.

    Args:
        metadata: of the model.
        pre: the name of a pre-tokenizer, for BPE files that are too old to name theirs.

    Raises:
        MetadataError: a key is missing or has another type.
        UnsupportedModelError: a kind of tokenizer or pre-tokenizer that is not known.
        TokenizerError: the vocabulary contradicts itself.
    """
    model = metadata.string(PREFIX + "model")
    if model not in KINDS:
        raise UnsupportedModelError(
            f"'{metadata.source}' has a tokenizer of kind {model!r}; known are {', '.join(KINDS)}"
        )
    vocabulary = read_vocabulary(metadata)
    build = {"bpe": _bpe, "spm": _spm, "wordpiece": _wordpiece}[KINDS[model]]
    return Tokenizer(build(metadata, vocabulary, pre))


def _bpe(metadata: Metadata, vocabulary: Vocabulary, pre: str | None) -> TokenizerParts:
    if pre is None and not metadata.has(PREFIX + "pre"):
        raise MetadataError(
            PREFIX + "pre",
            f"'{metadata.source}' does not name its pre-tokenizer ({PREFIX}pre), so its text would be cut"
            " wrongly; convert it again, or name one, such as 'llama-bpe'",
        )
    rules = pre_tokenizer(pre or metadata.string(PREFIX + "pre"))
    model = BPE(vocabulary.ids, metadata.strings(PREFIX + "merges"), rules)
    raw = set(vocabulary.of_type(*HIDDEN, TokenType.USER_DEFINED))

    def piece(token: int) -> bytes:
        text = vocabulary.texts[token]
        return text.encode() if token in raw else byte_level_piece(text)

    specials = _special_tokens(metadata, vocabulary)
    return _parts(
        metadata,
        vocabulary,
        kind="bpe",
        encode=_cutting(specials, lambda text, _first: model.encode(text)),
        piece=piece,
        add_bos=rules.add_bos,
        add_sep=rules.add_sep,
    )


def _spm(metadata: Metadata, vocabulary: Vocabulary, _pre: str | None) -> TokenizerParts:
    for token in vocabulary.of_type(TokenType.BYTE):
        text = vocabulary.texts[token]
        if (
            len(text) != 6
            or not text.startswith("<0x")
            or not set(text[3:5]) <= set("0123456789ABCDEFabcdef")
        ):
            raise TokenizerError(f"token {token} is a byte and must be written <0xNN>; it is {text!r}")
    model = SPM(vocabulary)
    space = metadata.boolean(PREFIX + "add_space_prefix", True)

    def encode(text: str, after_special: bool) -> list[int]:
        return model.encode(" " + text if space and after_special else text)

    specials = _special_tokens(metadata, vocabulary)
    return _parts(
        metadata,
        vocabulary,
        kind="spm",
        encode=_cutting(specials, encode),
        piece=lambda token: spm_piece(vocabulary.texts[token], int(vocabulary.types[token])),
        add_bos=True,
        strip_space=space,
    )


def _wordpiece(metadata: Metadata, vocabulary: Vocabulary, _pre: str | None) -> TokenizerParts:
    model = WordPiece(vocabulary)
    return _parts(
        metadata,
        vocabulary,
        kind="wordpiece",
        encode=_cutting(_special_tokens(metadata, vocabulary), lambda text, _first: model.encode(text)),
        piece=lambda token: wordpiece_piece(vocabulary.texts[token], int(vocabulary.types[token])),
        add_bos=True,
        add_sep=True,
        strip_space=True,
    )


def _special_tokens(metadata: Metadata, vocabulary: Vocabulary) -> SpecialTokens:
    # Phi-3 swallows the white space after its special tokens; the format has no key for that. Later Phi
    # models share its architecture, but not its SentencePiece vocabulary.
    name = metadata.string("general.name", "-").lower()
    spm = metadata.string(PREFIX + "model") == "llama"
    phi3 = "phi-3" in name or "phi3" in name or (spm and metadata.architecture == "phi3")
    hidden = set(vocabulary.of_type(*HIDDEN))
    return SpecialTokens(
        SpecialToken(
            token,
            vocabulary.texts[token],
            always=token not in hidden,
            rstrip=phi3 and vocabulary.texts[token] not in PHI3_KEEPS_SPACE,
        )
        for token in vocabulary.of_type(*HIDDEN, TokenType.USER_DEFINED)
    )


def _cutting(
    specials: SpecialTokens, encode: Callable[[str, bool], list[int]]
) -> Callable[[str, bool], list[int]]:
    """Wrap an encoder of plain text; it is told whether its text is the first or follows a special token."""

    def run(text: str, parse_special: bool) -> list[int]:
        ids: list[int] = []
        after_special = True
        for part in specials.split(text, parse_special=parse_special):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += encode(part, after_special)
            after_special = isinstance(part, int)
        return ids

    return run


def _parts(
    metadata: Metadata,
    vocabulary: Vocabulary,
    *,
    kind: str,
    encode: Callable[[str, bool], list[int]],
    piece: Callable[[int], bytes],
    add_bos: bool,
    add_sep: bool = False,
    strip_space: bool = False,
) -> TokenizerParts:
    special = vocabulary.special
    first = special.get("cls", special.get("bos")) if kind == "wordpiece" else special.get("bos")
    wanted = (
        ("add_bos_token", first, add_bos, "bos"),
        ("add_eos_token", special.get("eos"), False, "eos"),
        ("add_sep_token", special.get("sep"), add_sep, "sep"),
    )
    added: dict[str, list[int]] = {}
    for key, token, default, role in wanted:
        wants = metadata.boolean(PREFIX + key, default)
        if wants and token is None:
            raise TokenizerError(f"'{metadata.source}' adds a {role} token to every text and names none")
        added[role] = [token] if wants and token is not None else []
    return TokenizerParts(
        kind=kind,
        size=len(vocabulary.texts),
        encode=encode,
        piece=piece,
        lookup=vocabulary.ids.get,
        special=special,
        special_ids=frozenset(vocabulary.of_type(*HIDDEN)),
        end_ids=vocabulary.end_ids,
        prefix=added["bos"],
        suffix=added["eos"] + added["sep"],
        strip_space=strip_space,
    )
