"""WordPiece, as BERT uses it: words are cut at white space and punctuation, then greedily from the left."""

from __future__ import annotations

from typing import Final

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from nocopy.errors import TokenizerError
from nocopy.models.vocabulary import TokenType, Vocabulary

WORD: Final = "\u2581"
"""GGUF marks the pieces that begin a word with it, where BERT's own files mark the others with "##"."""
CONTINUATION: Final = "##"
LONGEST_WORD: Final = 100
"""Characters; BERT's own limit, beyond which a word is unknown."""


def wordpiece_piece(text: str, kind: int) -> bytes:
    """Return the bytes that a token stands for: a space before each word."""
    if kind in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED):
        return text.encode()
    return (" " + text[1:] if text.startswith(WORD) else text).encode()


class WordPiece:
    """Encodes text that holds no special tokens.

    Case and accents are folded unless the vocabulary itself has capital letters: files do not say.

    Raises:
        TokenizerError: no unknown token, or no token that begins a word.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        unknown = vocabulary.special.get("unk", vocabulary.ids.get("[UNK]"))
        if unknown is None:
            raise TokenizerError("a WordPiece vocabulary needs an unknown token; this one names none")
        special = set(vocabulary.of_type(TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED))
        special.add(unknown)
        words: dict[str, int] = {}
        cased = False
        for token, text in enumerate(vocabulary.texts):
            if token in special or (text.startswith("[") and text.endswith("]")):
                words[text] = token
            elif text.startswith(WORD):
                words[text[1:]] = token
                cased = cased or text != text.lower()
            else:
                words[CONTINUATION + text] = token
        if not any(text.startswith(WORD) for text in vocabulary.texts):
            raise TokenizerError(
                f"a WordPiece vocabulary marks words with {WORD!r}; no token of this one has it"
            )
        model = models.WordPiece(
            vocab=words,
            unk_token=vocabulary.texts[unknown],
            max_input_chars_per_word=LONGEST_WORD,
            continuing_subword_prefix=CONTINUATION,
        )
        self._tokenizer = Tokenizer(model)
        self._tokenizer.normalizer = normalizers.BertNormalizer(lowercase=not cased)
        self._tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        return self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
