"""A text that is being made: iterate for its pieces, or take `.text` for all of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from weakref import WeakKeyDictionary, ref

from nocopy.errors import UsageError
from nocopy.models.tokenizer import Tokenizer
from nocopy.session.generate import Generation, Step, generate
from nocopy.session.sampler import Sampler
from nocopy.session.session import Session


@dataclass
class Speed:
    """Tokens and seconds of a completion, so far.

    `reused` of the prompt's tokens were in the session's cache already. `generate_seconds` begins when the
    prompt has been read.
    """

    prompt_tokens: int
    reused: int = 0
    prompt_seconds: float = 0.0
    generated: int = 0
    generate_seconds: float = 0.0

    @property
    def prompt_rate(self) -> float:
        """Tokens of the prompt a second, without those reused; 0 before it has been read."""
        fed = self.prompt_tokens - self.reused
        return fed / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def rate(self) -> float:
        """Generated tokens a second; the first comes with the prompt and does not count."""
        return (self.generated - 1) / self.generate_seconds if self.generated > 1 else 0.0


class Completion:
    """What follows a prompt. Nothing is computed before it is asked for.

    Iterating gives pieces of text as tokens come; `steps()` gives tokens with their log-probabilities. A
    session makes one completion at a time: starting the next ends this one.

    Args:
        session: where the tokens are fed; what it already has of the prompt is used again.
        tokenizer: of the model.
        sampler: chooses the tokens.
        prompt: the tokens before the text, at least one.
        request: limit, stops, constraint.

    Raises:
        UsageError: the prompt is empty, or leaves no room in the context; the message names both lengths.
    """

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer,
        sampler: Sampler,
        prompt: Sequence[int],
        request: Generation | None = None,
    ) -> None:
        if not prompt:
            raise UsageError("an empty prompt was given; this model needs a token to begin with")
        if len(prompt) >= session.context:
            most = session.engine.config.context
            more = (
                f"open the model with a longer one (-c), up to {most}" if most > len(prompt) else "shorten it"
            )
            raise UsageError(
                f"the prompt has {len(prompt)} tokens; the context of {session.context} has no room for it"
                f" and an answer; {more}"
            )
        self.session, self.prompt, self.seed = session, list(prompt), sampler.seed
        self.tokens: list[int] = []
        """What was generated so far."""
        self.finish = ""
        """Why it ended: "stop" or "length"; "" before that."""
        self.speed = Speed(len(prompt))
        self._text: list[str] = []
        self._request = request or Generation()
        self._steps = self._run(tokenizer, sampler)
        _newest[session] = ref(self)

    def __iter__(self) -> Iterator[str]:
        """Pieces of text, none empty.

        Raises:
            UsageError: the session has begun another completion since.
        """
        return (step.text for step in self._steps if step.text)

    def steps(self) -> Iterator[Step]:
        """The tokens, one `Step` each. Raises as iterating does."""
        return self._steps

    @property
    def text(self) -> str:
        """The whole text; makes what is still missing. Raises as iterating does."""
        for _ in self._steps:
            pass
        return "".join(self._text)

    def __str__(self) -> str:
        return self.text

    def cancel(self) -> None:
        """End after the token that is being made; may be called from another thread."""
        self._request.cancel()

    def _run(self, tokenizer: Tokenizer, sampler: Sampler) -> Iterator[Step]:
        self._check()
        start = perf_counter()
        self.speed.reused = self.session.extend_to(self.prompt)
        sampler.accept(self.prompt)
        first = perf_counter()
        self.speed.prompt_seconds = first - start
        for step in generate(self.session, tokenizer, sampler, self._request):
            if step.token >= 0:
                self.tokens.append(step.token)
            self._text.append(step.text)
            self.finish = step.finish
            self.speed.generated = len(self.tokens)
            self.speed.generate_seconds = perf_counter() - first
            yield step
            self._check()

    def _check(self) -> None:
        if _newest[self.session]() is not self:
            raise UsageError(
                "the next piece of a text was asked for; its session has begun another text since."
                " Finish one before the next, or give each a session of its own"
            )


_newest: WeakKeyDictionary[Session, ref[Completion]] = WeakKeyDictionary()
"""The completion that each session is making; older ones may not touch it any more."""
