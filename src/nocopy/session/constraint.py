"""Constraints on what may be generated: a JSON schema, any JSON, an expression, a Lark or GBNF grammar."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper, grammar_from

from nocopy.errors import UsageError
from nocopy.models.tokenizer import Tokenizer

Kind = Literal["json_schema", "json", "regex", "lark", "gbnf"]
KINDS: tuple[str, ...] = get_args(Kind)
LIMITS = LLParserLimits(max_lexer_states=50_000, verbose_errors=False)
"""A state takes 2 KB. The library's long messages hold its own settings and nothing that helps."""


class Vocabulary:
    """A tokenizer's vocabulary in the form that constraints need; made once for a model."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        class Words:
            eos_token_id = next(iter(sorted(tokenizer.end_ids)), tokenizer.special.get("eos", 0))
            bos_token_id = tokenizer.special.get("bos")
            tokens = tokenizer.pieces() + [b""] * (size - tokenizer.size)
            special_token_ids = sorted(tokenizer.special_ids)

            def __call__(self, text: bytes | str) -> list[int]:
                text = text.decode(errors="replace") if isinstance(text, bytes) else text
                return tokenizer.encode(text, add_special=False)

        ends = sorted(tokenizer.end_ids) or None
        self.size = size
        self.library = LLTokenizer(TokenizerWrapper(Words()), n_vocab=size, eos_token=ends)


class Constraint:
    """Follows a generation and says which tokens may come next.

    `kind` and `source` are what it was made of, `tokens` what it has followed: with the vocabulary, its whole
    state.
    """

    def __init__(self, vocabulary: Vocabulary, matcher: LLMatcher, kind: str, source: str) -> None:
        self._vocabulary, self._matcher = vocabulary, matcher
        self.kind, self.source, self.tokens = kind, source, list[int]()
        self._mask = np.zeros(-(-vocabulary.size // 32), np.uint32)
        self._check()

    @classmethod
    def make(cls, vocabulary: Vocabulary, kind: Kind, text: str | Mapping[str, Any]) -> Self:
        """Compile a constraint.

        Args:
            vocabulary: the model's.
            kind: one of `KINDS`.
            text: the schema (text or a mapping), the expression or the grammar; ignored for "json".

        Raises:
            UsageError: the kind is unknown, or the text is not valid; the message says where.
        """
        if kind not in KINDS:
            raise UsageError(f"a constraint of kind {kind!r} was asked for; there are {', '.join(KINDS)}")
        source = text if isinstance(text, str) else json.dumps(text)
        try:
            if kind in ("json", "json_schema"):
                json.loads(source if kind == "json_schema" else "{}")  # says where, in the caller's own lines
                grammar = LLMatcher.grammar_from_json_schema("{}" if kind == "json" else source)
            else:
                grammar = grammar_from(kind, source)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"the {kind} constraint cannot be read: {error}") from error
        matcher = LLMatcher(vocabulary.library, grammar, log_level=0, limits=LIMITS)
        return cls(vocabulary, matcher, kind, source)

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Bool [vocabulary]: the tokens that may come next."""
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        self._check()
        bits = np.unpackbits(self._mask.view(np.uint8), bitorder="little")
        return bits[: self._vocabulary.size].view(np.bool_)

    def accept(self, token: int) -> None:
        """Tell it which token was drawn."""
        self._matcher.consume_token(token)
        self._check()
        self.tokens.append(token)

    @property
    def finished(self) -> bool:
        """True when nothing but the end may follow."""
        return self._matcher.is_stopped()

    def copy(self) -> Constraint:
        """The same state, for a fork."""
        copy = Constraint(self._vocabulary, self._matcher.deep_copy(), self.kind, self.source)
        copy.tokens = list(self.tokens)
        return copy

    def _check(self) -> None:
        if self._matcher.is_error():
            raise UsageError(f"the constraint failed: {self._matcher.get_error()}")
