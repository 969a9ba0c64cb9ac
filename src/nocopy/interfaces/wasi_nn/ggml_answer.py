"""The answer to a prompt, token by token."""

from __future__ import annotations

from collections.abc import Callable

from nocopy.errors import NnError
from nocopy.interfaces.wasi_nn.encoding import Errno
from nocopy.models.tokenizer import Tokenizer
from nocopy.session.constraint import Constraint
from nocopy.session.sampler import Sampler
from nocopy.session.session import Session


class Answer:
    """What follows a prompt in a session, as far as it was asked for.

    The last token is fed when the next one is wanted: one that is the last costs no pass.

    Args:
        session: where the tokens are fed; what it has of the prompt already is used again.
        tokenizer: of the model.
        prompt: its tokens, fewer than the context has room for.
        sampler: chooses; penalties count tokens of the answer only.
        constraint: what may be said.
        ignore_end: go on past tokens that end a text.
    """

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer,
        prompt: list[int],
        sampler: Sampler,
        *,
        constraint: Constraint | None = None,
        ignore_end: bool = False,
    ) -> None:
        self.reused = session.extend_to(prompt)
        """How many tokens of the prompt the session had."""
        self.tokens: list[int] = []
        self.text = bytearray()
        self.piece = b""
        """The bytes of the last token; they may be a part of a character."""
        self._session, self._sampler, self._constraint = session, sampler, constraint
        self._ends = frozenset[int]() if ignore_end else tokenizer.end_ids
        self._bytes: Callable[[int], bytes] = tokenizer.stream(skip_special=False).push_bytes
        self._fed = True

    def advance(self) -> bytes:
        """Make one more token and return its bytes.

        Raises:
            NnError: the text has ended, or the context is full; what was made stays.
        """
        if self._constraint is not None and self._constraint.finished:
            raise NnError(Errno.END_OF_SEQUENCE, "the text is all that the grammar or schema admits")
        self._feed()
        token = self._sampler.sample(
            self._session.logits, self._constraint.allowed() if self._constraint else None
        )
        self._sampler.accept([token])
        if self._constraint is not None:
            self._constraint.accept(token)
        if token in self._ends:
            raise NnError(Errno.END_OF_SEQUENCE, "the model has ended its text")
        self.tokens.append(token)
        self.piece = self._bytes(token)
        self.text += self.piece
        self._fed = False
        return self.piece

    def _feed(self) -> None:
        if self._fed:
            return
        if self._session.length == self._session.context:
            raise NnError(
                Errno.CONTEXT_FULL,
                f"one more token was asked for; the context of {self._session.context} tokens is full. Begin"
                " with a shorter prompt, or raise ctx-size.",
            )
        self._session.append(self.tokens[-1:])
        self._fed = True
