"""Language models for wasi-nn, as WasmEdge's GGML plugin offers them: text in, text out, options as JSON.

Input 0 is the prompt, input 1 options; output 0 is the text (or, with "embedding", the vector as JSON),
output 1 says what was done. A context keeps its KV cache: of a prompt that begins like the last one, only the
rest is fed. The cache lies in memory of the host, which the device shares and the guest's quota counts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import numpy.typing as npt

from nocopy.errors import DeviceLostError, Error, NnError, TapeError
from nocopy.interfaces.constraint_limits import MAX_CONSTRAINT, check_constraint
from nocopy.interfaces.grip import rest
from nocopy.interfaces.loaded import Lease, Loaded
from nocopy.interfaces.model_calls import MAX_INPUT
from nocopy.interfaces.model_imports import ConstraintKind
from nocopy.interfaces.sessions import tokens_at_once
from nocopy.interfaces.wasi_nn.encoding import Errno, Target
from nocopy.interfaces.wasi_nn.ggml_answer import Answer
from nocopy.interfaces.wasi_nn.ggml_options import INFO, WARNING, Options, read_options
from nocopy.interfaces.wasi_nn.ggml_schema import explicit
from nocopy.interfaces.wasi_nn.protocol import Buffer, Host, Source, Tensor
from nocopy.models import Model
from nocopy.session.constraint import Constraint
from nocopy.session.language import CONTEXT
from nocopy.session.own import OwnSession
from nocopy.session.pace import Make
from nocopy.session.sampler import Sampler

PROMPT, OPTIONS = 0, 1
"""Inputs."""
TEXT, METADATA = 0, 1
"""Outputs."""
NO_TOKENS = np.empty(0, np.int32)
ABSOLUTE_PEAK = 32760
"""What the largest value becomes with embd-normalize 0: llama.cpp's number for 16-bit integers."""


def open_graph(source: Source, target: Target, config: bytes, host: Host) -> LanguageGraph:
    """Open a model that the host granted. The target is the host's to choose: its device.

    Raises:
        NnError: the guest gave the model's bytes, or options that cannot be.
        ModelError, DeviceError: it cannot be read or played.
    """
    del target
    if len(source.files) != 1:
        raise NnError(
            Errno.UNSUPPORTED_OPERATION,
            "a language model was to be loaded from the guest's own bytes; grant it by name (--nn-model"
            " NAME=FILE) and use load_by_name",
        )
    file = source.files[0]
    if not isinstance(file, Model) and not Path(file).exists():
        raise NnError(Errno.MODEL_NOT_FOUND, "a model was to be loaded by name; its file is gone")
    options = Options()
    if config:
        options = read_options(config, options, host.log)
    with host.grip.turn(host.until):
        lease = Lease(file, host.grip.device, host.grip.turns, host.ledger)
        try:
            _ = lease.loaded.embedder if lease.loaded.encoder else lease.loaded.engine  # places the weights
        except BaseException:
            lease.close()
            raise
    return LanguageGraph(lease, options, host)


@dataclass(frozen=True)
class LanguageGraph:
    """A language model on the guest's device. Implements `Graph`."""

    lease: Lease
    options: Options
    host: Host

    def context(self) -> LanguageContext:
        """See `Graph`."""
        return LanguageContext(self.lease.loaded, self.options, self.host)

    def close(self) -> None:
        """See `Graph`."""
        self.lease.close()


class LanguageContext:
    """One conversation with a language model. Implements `Context`.

    It has memory from its first `compute` on.
    """

    def __init__(self, loaded: Loaded, options: Options, host: Host) -> None:
        self._loaded, self._host = loaded, host
        self._options = options
        self._prompt = NO_TOKENS
        self._length = 0
        """Tokens of the prompt; more than the model can have are not kept."""
        self._charged: dict[str, int] = {}
        self._session: OwnSession | None = None
        self._answer: Answer | None = None
        self._single = False
        self._output = b""

    # Inputs

    def set_input(self, index: int, tensor: Tensor) -> None:
        """See `Context`. Text is UTF-8; type and shape do not matter. It is copied."""
        if index not in (PROMPT, OPTIONS):
            raise NnError(
                Errno.INVALID_ARGUMENT,
                f"input {index} was given; a language model has {PROMPT}, the prompt, and {OPTIONS}, options",
            )
        if index == OPTIONS:
            options = read_options(tensor.data.read(), self._options, self._host.log)
            self._charge("options", options.nbytes)
            self._options = options
            return
        if tensor.data.nbytes > MAX_INPUT:
            raise NnError(
                Errno.TOO_LARGE,
                f"a prompt of {tensor.data.nbytes} bytes was given; at most {MAX_INPUT} are taken",
            )
        try:
            text = tensor.data.read().decode()
        except UnicodeDecodeError as error:
            raise NnError(
                Errno.INVALID_ARGUMENT,
                f"a prompt was given that is not UTF-8: byte {error.start}, {error.reason}",
            ) from error
        ids = self._loaded.model.tokenizer.encode(text, parse_special=True)
        fits = len(ids) <= self._loaded.model.config.context
        prompt = np.array(ids, np.int32) if fits else NO_TOKENS
        self._charge("prompt", prompt.nbytes)
        self._prompt, self._length = prompt, len(ids)
        self._single = False

    # Computing

    def compute(self) -> None:
        """See `Context`. Makes the whole answer; when the context gets full, what there is stays readable."""
        self._forget()
        if self._options.embedding:
            output = self._embed()
            self._charge("output", len(output))
            self._output = output
            return
        start = perf_counter()
        answer = self._begin()
        first, made = perf_counter(), 0
        try:
            while (self._options.most < 0 or made < self._options.most) and not self._stopped(answer):
                rest(self._host.until)
                self._stream(answer.advance())
                made += 1
        except NnError as error:
            if error.errno != Errno.END_OF_SEQUENCE:
                raise
        finally:
            self._say(
                f"{self._length} tokens of prompt, {answer.reused} of them in the cache, in"
                f" {first - start:.3f} s; {made} tokens of answer in {perf_counter() - first:.3f} s"
            )

    def compute_single(self) -> None:
        """See `Context`. Makes one token; the first call reads the prompt."""
        if self._options.embedding:
            raise NnError(
                Errno.UNSUPPORTED_OPERATION, "one token of a vector was asked for; use compute for embeddings"
            )
        if not self._single:
            self._forget()
            self._begin()
            self._single = True
        assert self._answer is not None
        try:
            rest(self._host.until)
            self._answer.advance()
        except Error:
            self._single = False
            raise

    def fini_single(self) -> None:
        """See `Context`. The cache stays, so the next prompt may go on from it."""
        self._forget()

    def _begin(self) -> Answer:
        """Read the prompt."""
        session = self._open()
        self._answer = Answer(
            session,
            self._loaded.model.tokenizer,
            self._given(session.context - 1),
            Sampler(self._options.sampling),
            constraint=self._constraint(),
            ignore_end=self._options.ignore_end,
        )
        return self._answer

    def _given(self, most: int) -> list[int]:
        """The prompt's tokens.

        Raises:
            NnError: there are none, or more than `most`.
        """
        if not self._length:
            raise NnError(
                Errno.INVALID_ARGUMENT, "computing was asked for without a prompt; give one as input 0"
            )
        if self._length > most:
            raise NnError(
                Errno.PROMPT_TOO_LONG,
                f"the prompt has {self._length} tokens; there is room for {most}. Shorten it, or raise"
                " ctx-size if the model allows.",
            )
        return self._prompt.tolist()

    def _forget(self) -> None:
        self._answer, self._single, self._output = None, False, b""

    def _stopped(self, answer: Answer) -> bool:
        stop = self._options.stop.encode()
        return bool(stop) and stop in answer.text

    def _constraint(self) -> Constraint | None:
        options = self._options
        text = options.grammar or options.schema
        if not text:
            return None
        if len(text.encode()) > MAX_CONSTRAINT:
            raise NnError(
                Errno.TOO_LARGE,
                f"a grammar or schema of {len(text.encode())} bytes was given; at most {MAX_CONSTRAINT} are"
                " taken",
            )
        kind = ConstraintKind.GBNF if options.grammar else ConstraintKind.JSON_SCHEMA
        check_constraint(kind, text)
        vocabulary = self._loaded.vocabulary
        if options.grammar:
            return Constraint.make(vocabulary, "gbnf", text)
        return Constraint.make(vocabulary, "json_schema", explicit(text))

    def _open(self) -> OwnSession:
        """The session, of the context and type that the options ask for.

        Raises:
            NnError: the model gives embeddings only.
            MemoryLimitError: the guest's quota is used up.
        """
        if self._loaded.encoder:
            raise NnError(
                Errno.UNSUPPORTED_OPERATION,
                f"text was asked for of a {self._loaded.model.config.architecture} model, which gives"
                ' embeddings. Give it the option "embedding": true.',
            )
        asked, most, host = self._options.context, self._loaded.model.config.context, self._host
        context, kv = min(CONTEXT if asked is None else asked or most, most), self._options.keys
        session = self._session
        if session is not None and (session.context, session.region.kv) == (context, kv):
            return session
        if asked is not None and asked > most:
            host.log(
                WARNING, f"wasi-nn: ctx-size {asked} was asked for; the model has {most}, all that it gets"
            )
        engine = self._loaded.engine
        region = engine.own_region(context, kv)
        with host.grip.turn(host.until):
            self._close_session()
            self._session = OwnSession(
                engine,
                context=context,
                kv=kv,
                ledger=host.ledger,
                quota=host.quota,
                play=self._play,
                step=tokens_at_once(engine, region, host.limits.work),
            )
        return self._session

    # Outputs

    def get_output(self, index: int, out: Buffer) -> int:
        """See `Context`. The text so far, also of an answer that is made token by token."""
        if index == METADATA:
            return out.write(self._metadata())
        self._check_output(index)
        return out.write(bytes(self._answer.text) if self._answer else self._output)

    def get_output_single(self, index: int, out: Buffer) -> int:
        """See `Context`."""
        if index == METADATA:
            return out.write(self._metadata())
        self._check_output(index)
        if self._answer is None or not self._answer.tokens:
            raise NnError(
                Errno.RUNTIME_ERROR, "the last token was asked for; there is none. Call compute_single."
            )
        return out.write(self._answer.piece)

    def _check_output(self, index: int) -> None:
        if index != TEXT:
            raise NnError(
                Errno.INVALID_ARGUMENT,
                f"output {index} was asked for; a language model has {TEXT}, the text, and {METADATA}, what"
                " was done",
            )

    def _metadata(self) -> bytes:
        """What was done. Guests made for WasmEdge insist on the last two; there is no llama.cpp here."""
        answer = self._answer
        found = {
            "input_tokens": self._length,
            "output_tokens": len(answer.tokens) if answer else 0,
            "cached_tokens": answer.reused if answer else 0,
            "llama_build_number": 0,
            "llama_commit": "none",
        }
        return json.dumps(found).encode()

    # Embeddings

    def _embed(self) -> bytes:
        if not self._loaded.encoder:
            architecture = self._loaded.model.config.architecture
            raise NnError(
                Errno.UNSUPPORTED_OPERATION,
                f"embeddings were asked for of a {architecture} model, which generates text; use one of the"
                " BERT family",
            )
        tokens = self._given(self._loaded.model.config.context)
        host, start = self._host, perf_counter()
        with host.grip.turn(host.until):
            embedder = self._loaded.embedder
            if embedder.work(len(tokens)) > host.limits.work:
                raise TapeError(
                    f"embedding {len(tokens)} tokens was asked for; it costs {embedder.work(len(tokens))}"
                    f" elements, and this guest may ask for {host.limits.work} at once"
                )
            vector = embedder.embed(tokens, normalize=False, timeout=rest(host.until))
        self._say(f"a vector of {len(tokens)} tokens in {perf_counter() - start:.4f} s")
        return embedding(normalized(vector, self._options.norm))

    # The host

    def _play(self, make: Make, then: Make | None) -> None:
        try:
            self._host.grip.play(make, self._host.until, then)
        except DeviceLostError:
            if self._session is not None:  # the device may still write there
                self._session.memory.hold("a lost device").leak()
            raise

    def _stream(self, piece: bytes) -> None:
        if self._options.stream:
            self._host.stdout(piece)

    def _say(self, line: str) -> None:
        if self._options.log:
            self._host.log(INFO, f"wasi-nn: {line}")

    def close(self) -> None:
        """See `Context`."""
        self._close_session()
        for what in list(self._charged):
            self._charge(what, 0)

    def _close_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _charge(self, what: str, nbytes: int) -> None:
        """Have the guest's quota count what is kept for it.

        Raises:
            MemoryLimitError: it is used up.
        """
        more = nbytes - self._charged.get(what, 0)
        if more > 0:
            self._host.quota.charge(more)
        else:
            self._host.quota.refund(-more)
        self._charged[what] = nbytes


def embedding(vector: npt.NDArray[np.float32]) -> bytes:
    """A vector as the plugin writes it: JSON, ten digits a number."""
    numbers = ",".join(f"{value:.10g}" for value in vector.tolist())
    return f'{{"n_embedding": {len(vector)}, "embedding": [{numbers}]}}'.encode()


def normalized(vector: npt.NDArray[np.float32], norm: int) -> npt.NDArray[np.float32]:
    """A vector divided as embd-normalize says; see `ggml_options.NORMS`."""
    if norm < 0:
        return vector
    sizes = np.abs(vector.astype(np.float64))
    size = sizes.max() / ABSOLUTE_PEAK if norm == 0 else (sizes**norm).sum() ** (1 / norm)
    return vector if size == 0 else (vector / size).astype(np.float32)
