"""A language model, ready to use: `LanguageModel("model.gguf").generate("Once")`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any, Self, TypeAlias
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

from nocopy.device.discovery import open_device
from nocopy.device.protocol import Device
from nocopy.errors import ClosedError, DeviceError, DeviceLostError, MetadataError, UsageError
from nocopy.memory.dtype import DType
from nocopy.memory.ledger import Ledger
from nocopy.memory.linear import LinearMemory
from nocopy.models.architectures import ARCHITECTURES
from nocopy.models.builtin_templates import named_template
from nocopy.models.chat_template import ChatTemplate
from nocopy.models.config import Config
from nocopy.models.find import find_model
from nocopy.models.load import open_model
from nocopy.models.tokenizer import Tokenizer
from nocopy.session.batch import SessionBatch
from nocopy.session.completion import Completion
from nocopy.session.embed import Embedder
from nocopy.session.engine import Engine
from nocopy.session.generate import Generation
from nocopy.session.own import OwnSession
from nocopy.session.region import Region
from nocopy.session.sampler import Sampler, Sampling
from nocopy.session.session import Session

Message: TypeAlias = Mapping[str, Any]
"""A turn of a conversation: "role" ("system", "user", "assistant") and "content"."""

CONTEXT = 4096
"""Tokens that fit unless more is asked for: a model's own context can need more memory than there is."""
KV_TYPES = {"f16": DType.F16, "q8_0": DType.Q8_0, "f32": DType.F32, "bf16": DType.BF16}


class LanguageModel:
    """A model on a device, with its tokenizer and its chat template. One thread at a time.

    Args:
        model: a GGUF file, a Hugging Face folder, or `user/repo[:QUANT]` from the Hugging Face cache; None
            for the default model.
        device: a name that `open_device` knows, or an open device, which stays the caller's to close.
        context: tokens that a session holds; None for 4096 or all that the model has, whichever is less; 0
            for all that the model has.
        kv: element type of the KV cache: "f16", "q8_0", "f32" or "bf16".
        chat_template: Jinja text, or the name of a built-in template, instead of the model's own.
        allow_copy: let a device that cannot share memory copy it; the ledger counts the bytes.
        progress: called with the bytes uploaded so far, on a device with memory of its own.

    Raises:
        UsageError: there is no such model, device, context or type.
        ModelError: the model cannot be read or played; a subclass says why.
        DeviceUnavailableError, CopyRefusedError: as `open_device`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        device: str | Device = "auto",
        context: int | None = None,
        kv: str = "f16",
        chat_template: str | None = None,
        allow_copy: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        if kv not in KV_TYPES:
            raise UsageError(f"a KV cache of {kv!r} was asked for; there are {', '.join(KV_TYPES)}")
        start = perf_counter()
        self.path: Path = find_model(model)
        self.ledger = Ledger()
        self.kv = KV_TYPES[kv]
        self._chat_template, self._progress = chat_template, progress
        self._sessions: WeakSet[OwnSession | SessionBatch] = WeakSet()
        with ExitStack() as stack:
            self.model = open_model(self.path)
            stack.callback(self.model.close)
            self.context = _context(context, self.model.config)
            self._on_device = stack.enter_context(ExitStack())
            self.device = self._open(device, allow_copy, self._on_device)
            self._closing = stack.pop_all()
        self.load_seconds = perf_counter() - start

    @staticmethod
    def _open(device: str | Device, allow_copy: bool, closing: ExitStack) -> Device:
        if not isinstance(device, str):
            return device
        found = open_device(device, allow_copy=allow_copy)
        closing.callback(found.close)
        return found

    @property
    def config(self) -> Config:
        """The numbers that shape the model."""
        return self.model.config

    @property
    def name(self) -> str:
        """What the model calls itself, or its file's name; short, and safe to print."""
        own = self.model.metadata.get("general.name")
        name = own if isinstance(own, str) and own else self.path.stem
        return "".join(c for c in name[:80] if c.isprintable())

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to tokens and back. Raises TokenizerError or UsageError if the model has none."""
        return self.model.tokenizer

    @cached_property
    def template(self) -> ChatTemplate:
        """Conversations to text.

        Raises:
            UsageError: the model has none, and none was given.
            TemplateError: it does not compile.
        """
        if self._chat_template is not None:
            return named_template(self._chat_template, self.tokenizer)
        try:
            return self.model.template
        except MetadataError as error:
            raise UsageError(
                f"a conversation was asked for; {self.name} has no chat template, so it was probably not"
                " trained for conversations. Choose another model, or give a template (such as chatml)"
            ) from error

    @cached_property
    def engine(self) -> Engine:
        """The model on the device; its weights are placed when it is first asked for.

        Raises:
            UsageError: the model is an embedding model.
            DeviceError: the device has too little memory.
        """
        architecture = self.config.architecture
        if ARCHITECTURES[architecture].encoder:
            raise UsageError(
                f"text was to be generated; {self.name} is an embedding model ({architecture}): use embed"
            )
        start = perf_counter()
        region = Region(self.config, 0, self.context, 1, self.kv)
        engine = Engine(
            self.model,
            self.device,
            ledger=self.ledger,
            progress=self._progress,
            cache=region.cache.nbytes,
        )
        self._on_device.callback(engine.close)
        self.load_seconds += perf_counter() - start
        return engine

    def session(
        self,
        *,
        context: int | None = None,
        kv: str | DType | None = None,
        fill: Callable[[LinearMemory], Sequence[int]] | None = None,
    ) -> OwnSession:
        """Open a session with a memory of its own; closed with the model at the latest.

        Args:
            context: as for the model; None for the model's.
            kv: likewise.
            fill: see `OwnSession`.

        Raises:
            UsageError: the model has no such context, or is an embedding model.
            MemoryLimitError: there is not that much memory.
        """
        room = self.context if context is None else _context(context, self.config)
        made = OwnSession(
            self.engine,
            context=room,
            kv=KV_TYPES[kv] if isinstance(kv, str) else kv or self.kv,
            ledger=self.ledger,
            fill=fill,
        )
        self._sessions.add(made)
        return made

    def batch(self, count: int, *, context: int | None = None, kv: str | DType | None = None) -> SessionBatch:
        """Open sequences that are decoded together, weights read once; closed with the model at the latest.

        Args:
            count: of sequences, 1 to 8.
            context: tokens that fit each; as for the model; None for the model's.
            kv: likewise.

        Raises:
            UsageError: there are not 1 to 8; or as `session`.
            MemoryLimitError: there is not that much memory.
        """
        made = SessionBatch(
            self.engine,
            count,
            context=self.context if context is None else _context(context, self.config),
            kv=KV_TYPES[kv] if isinstance(kv, str) else kv or self.kv,
            ledger=self.ledger,
        )
        self._sessions.add(made)
        return made

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        sampling: Sampling | None = None,
        json_schema: str | Mapping[str, Any] | None = None,
        grammar: str | None = None,
        regex: str | None = None,
        logprobs: int | None = None,
        ignore_end: bool = False,
        parse_special: bool = False,
        session: Session | None = None,
        **options: Any,
    ) -> Completion:
        """Continue a text. What the session has of it already is not computed again.

        Args:
            prompt: text, or tokens.
            max_tokens: most tokens to generate; None goes on until the model ends or the context is full.
            stop: strings that end the text; they are not part of it.
            sampling: how to choose tokens; or its fields by name, as `options`: temperature, top_k, seed, …
            json_schema: what the text must fit: a schema as text or as a dict.
            grammar: the same as a GBNF or Lark grammar.
            regex: the same as a regular expression.
            logprobs: how many of the likeliest tokens each step reports.
            ignore_end: go on past end-of-text tokens.
            parse_special: take control tokens that are written out in the prompt as tokens.
            session: where to do it; the model's own if None, which serves one text at a time.
            **options: fields of `Sampling`.

        Raises:
            UsageError: an option is unknown or out of range, two constraints, a prompt that does not fit.
        """
        tokenizer = self.tokenizer
        if isinstance(prompt, str):
            prompt = tokenizer.encode(prompt, parse_special=parse_special)
        request = Generation(
            limit=max_tokens,
            stop=stop,
            logprobs=logprobs,
            constraint=self._constraint(json_schema, grammar, regex),
            ignore_end=ignore_end,
        )
        sampler = Sampler(_sampling(sampling, options))
        return Completion(session or self.own_session, tokenizer, sampler, prompt, request)

    def chat(
        self, messages: Sequence[Message], *, tools: Sequence[Message] | None = None, **options: Any
    ) -> Completion:
        """Answer a conversation. Turns that the session has seen are not computed again.

        Args:
            messages: the turns, the last one usually the user's.
            tools: JSON schemas of functions that the model may call.
            **options: as for `generate`.

        Raises:
            UsageError: as `generate`; or the model has no chat template.
            TemplateError: the template refuses the conversation.
        """
        return self.generate(self.encode_chat(messages, tools=tools), **options)

    def encode_chat(
        self, messages: Sequence[Message], *, tools: Sequence[Message] | None = None
    ) -> list[int]:
        """The tokens of a conversation, up to where the answer begins. Raises as `chat`."""
        text = self.template.render(messages, tools=tools)
        return self.tokenizer.encode(text, add_special=False, parse_special=True)

    def embed(self, texts: str | Iterable[str], *, normalize: bool = True) -> npt.NDArray[np.float32]:
        """Return the vector of a text, f32 [width], or of several, f32 [texts, width].

        Args:
            texts: one text or several.
            normalize: make each of length 1, so that a dot product is the cosine.

        Raises:
            UsageError: the model generates text, or a text is longer than the model's context.
        """
        if isinstance(texts, str):
            return self._embedder.embed(self.tokenizer.encode(texts), normalize=normalize)
        vectors = [self.embed(text, normalize=normalize) for text in texts]
        return np.stack(vectors) if vectors else np.zeros((0, self.config.width), np.float32)

    def move(self, device: str | Device, *, allow_copy: bool = False) -> int:
        """Go on with another device, such as after the loss of the one before. Sessions keep their memory.

        A device that works gives back first what it has of them. After a loss, tokens whose keys and values
        only the device had are read again: those since the last `Session.flush`, and the last one.

        Args:
            device: a name to open one, or an open one, which stays the caller's to close.
            allow_copy: as for a new model.

        Returns:
            How many tokens were read again, by all sessions together.

        Raises:
            UsageError: a batch is open, which cannot move. All is where it was.
            DeviceUnavailableError: the device is not on this machine. All is where it was.
            CopyRefusedError: it could only copy. Now and below, sessions are on no device: move them again.
            DeviceError: it has too little memory, or fails.
        """
        sessions: list[OwnSession] = []
        for each in self._sessions:
            if each.memory.closed:
                continue
            if isinstance(each, SessionBatch):
                raise UsageError("a batch is open, which cannot move; close it, and make another afterwards")
            sessions.append(each)
        with ExitStack() as stack:
            found = self._open(device, allow_copy, stack)
            lost = not all(map(_flushed, sessions))
            before, self._on_device, self.device = self._on_device, stack.pop_all(), found
        for session in sessions:
            session.leave()
        for cached in ("engine", "_embedder"):
            self.__dict__.pop(cached, None)
        with suppress(DeviceError):  # what a lost device held is gone with it
            before.close()
        fed = 0
        for session in sessions:
            session.resume(self.engine)
            fed += session.reread(logits=lost)
        return fed

    def close(self) -> None:
        """Close its sessions, what it opened, and the files. Twice is allowed."""
        for session in list(self._sessions):
            session.close()
        self._on_device.close()
        self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @cached_property
    def own_session(self) -> OwnSession:
        """Where texts are made that are given no session of their own."""
        return self.session()

    def adopt(self, session: OwnSession) -> None:
        """Make texts that are given no session in this one from now on; the one before is closed."""
        before: OwnSession | None = self.__dict__.get("own_session")
        self.__dict__["own_session"] = session
        self.context = session.context
        if before is not None and before is not session:
            before.close()

    @cached_property
    def _embedder(self) -> Embedder:
        embedder = Embedder(self.model, self.device, ledger=self.ledger)
        self._on_device.callback(embedder.close)
        return embedder

    def _constraint(
        self, schema: str | Mapping[str, Any] | None, grammar: str | None, regex: str | None
    ) -> Any:
        """Compile the one constraint that was given, if any."""
        gbnf = grammar is not None and "::=" in grammar
        given = {"json_schema": schema, "gbnf" if gbnf else "lark": grammar, "regex": regex}
        kinds = [kind for kind, text in given.items() if text is not None]
        if not kinds:
            return None
        if len(kinds) > 1:
            raise UsageError(f"{' and '.join(kinds)} were given; a text follows one constraint")
        from nocopy.session.constraint import Constraint

        (kind,) = kinds
        return Constraint.make(self._vocabulary, kind, given[kind])  # pyright: ignore[reportArgumentType]

    @cached_property
    def _vocabulary(self) -> Any:
        from nocopy.session.constraint import Vocabulary

        return Vocabulary(self.tokenizer, self.config.vocabulary)


def _flushed(session: Session) -> bool:
    """Whether a device could give back what it has of a session."""
    try:
        session.flush()
    except (DeviceLostError, ClosedError):
        return False
    return True


def _context(asked: int | None, config: Config) -> int:
    """How many tokens a session holds."""
    if asked is None:
        return min(CONTEXT, config.context)
    if not 0 <= asked <= config.context:
        raise UsageError(
            f"a context of {asked} tokens was asked for; this model was trained for {config.context}."
            " 0 means all of them"
        )
    return asked or config.context


def _sampling(sampling: Sampling | None, options: Mapping[str, Any]) -> Sampling:
    """The one that was given, or one made of its fields."""
    known = [field.name for field in fields(Sampling)]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise UsageError(f"the option {unknown[0]!r} was given; sampling has {', '.join(known)}")
    if sampling is not None and options:
        raise UsageError(f"{next(iter(options))} was given beside a whole `sampling`; give one of them")
    return sampling or Sampling(**options)
