"""The options that a guest gives with a language model: those of WasmEdge's GGML plugin, by their names.

An option acts, or changes nothing because it is the host's to decide, or is refused: because its value would
change the answer in a way that is not offered here, or because it names a file or an address. An option that
the plugin does not have changes nothing either, and the log says so; the plugin does the same, silently.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from nocopy.errors import NnError, UsageError
from nocopy.interfaces.compute import Log
from nocopy.interfaces.imports import LOG_LEVELS
from nocopy.interfaces.wasi_nn.encoding import Errno
from nocopy.memory.dtype import DType
from nocopy.models.ggml import GGMLType
from nocopy.session.sampler import Sampling

INFO, WARNING = LOG_LEVELS.index("info"), LOG_LEVELS.index("warning")
MAX_CONFIG = 256 << 10
"""Bytes of JSON."""
RANDOM_SEED = 2**32 - 1
"""llama.cpp's number for "draw one"; -1 is the same in 32 bits."""
NORMS = range(-1, 65)
"""What embd-normalize may be: -1 nothing, 0 the largest value becomes 32760, else the p of a p-norm."""
CACHES = {
    GGMLType.F32: DType.F32,
    GGMLType.F16: DType.F16,
    GGMLType.Q8_0: DType.Q8_0,
    GGMLType.BF16: DType.BF16,
}
"""Types of a KV cache by the numbers that llama.cpp gives them."""


@dataclass(frozen=True)
class Options:
    """What a guest asked for, or the plugin's defaults.

    `context` is None for the host's default and 0 for all that the model has; `most` is the number of tokens
    that one `compute` makes, negative for no limit; `stop` ends the text of a `compute`.
    """

    log: bool = False
    stream: bool = False
    context: int | None = None
    most: int = -1
    stop: str = ""
    embedding: bool = False
    norm: int = 2
    keys: DType = DType.F16
    values: DType = DType.F16
    grammar: str = ""
    schema: str = ""
    ignore_end: bool = False
    sampling: Sampling = field(default_factory=Sampling)

    @property
    def nbytes(self) -> int:
        """Bytes of text in them."""
        return len((self.stop + self.grammar + self.schema).encode())


Change = Callable[[Options, Any], Options]


@dataclass(frozen=True)
class Option:
    """One that acts: its JSON type, what it does in words, and what it changes."""

    kind: type
    doc: str
    change: Change


def _set(field: str) -> Change:
    return lambda options, value: replace(options, **{field: value})


def _sample(field: str, read: Callable[[Any], Any] = lambda value: value) -> Change:
    def change(options: Options, value: Any) -> Options:
        return replace(options, sampling=replace(options.sampling, **{field: read(value)}))

    return change


def _cache(field: str) -> Change:
    def change(options: Options, value: int) -> Options:
        if value not in CACHES:
            known = ", ".join(f"{n.value} {n.name.lower()}" for n in CACHES)
            raise UsageError(f"a KV cache of type {value} was asked for; there are {known}")
        return replace(options, **{field: CACHES[GGMLType(value)]})

    return change


def _norm(options: Options, value: int) -> Options:
    if value not in NORMS:
        raise UsageError(f"embd-normalize {value} was asked for; it is {NORMS.start} to {NORMS.stop - 1}")
    return replace(options, norm=value)


def _context(options: Options, value: int) -> Options:
    if value < 0:
        raise UsageError(f"ctx-size {value} was asked for; it is a number of tokens, or 0 for all")
    return replace(options, context=value)


def _seed(value: int) -> int | None:
    return None if value in (-1, RANDOM_SEED) else value % 2**32


ACTING: dict[str, Option] = {
    "enable-log": Option(bool, "say in the log what is done and how fast", _set("log")),
    "enable-debug-log": Option(bool, "the same", _set("log")),
    "stream-stdout": Option(
        bool, "`compute` writes the text to the guest's stdout as it comes", _set("stream")
    ),
    "ctx-size": Option(
        int, "tokens of prompt and answer together; 0 for all that the model was trained for", _context
    ),
    "n-predict": Option(int, "most tokens that `compute` makes; negative for no limit", _set("most")),
    "reverse-prompt": Option(str, "`compute` ends once the text has this in it", _set("stop")),
    "embedding": Option(
        bool, "`compute` gives the vector of the text; for models of the BERT family", _set("embedding")
    ),
    "embd-normalize": Option(
        int, "-1 as it is, 0 largest value 32760, 1 sum of values 1, 2 length 1, p: p-norm 1", _norm
    ),
    "temp": Option(
        float, "0 or less takes the likeliest token", _sample("temperature", lambda value: max(0.0, value))
    ),
    "top-k": Option(int, "keep this many; 0 or less for all", _sample("top_k", lambda value: max(0, value))),
    "top-p": Option(
        float, "keep the likeliest up to this sum; 1 or more for all", _sample("top_p", lambda v: min(1.0, v))
    ),
    "min-p": Option(float, "keep those this likely, relative to the likeliest", _sample("min_p")),
    "typ-p": Option(
        float, "keep those of typical surprise, up to this sum", _sample("typical_p", lambda v: min(1.0, v))
    ),
    "repeat-penalty": Option(float, "of tokens of the answer; 1 is off", _sample("repeat_penalty")),
    "presence-penalty": Option(float, "of tokens of the answer; 0 is off", _sample("presence_penalty")),
    "frequency-penalty": Option(float, "of tokens of the answer; 0 is off", _sample("frequency_penalty")),
    "last-n-penalty": Option(int, "how many tokens are penalised; -1 for all", _sample("repeat_last_n")),
    "seed": Option(int, "the same seed, the same text; -1 or 4294967295 draws one", _sample("seed", _seed)),
    "ignore-eos": Option(bool, "go on where the model would end", _set("ignore_end")),
    "grammar": Option(str, "a GBNF grammar that the text fits", _set("grammar")),
    "json-schema": Option(
        str, "a JSON schema, as text, that the text fits, read as llama.cpp does", _set("schema")
    ),
    "cache-type-k": Option(int, "of the KV cache: 1 f16, 8 q8_0, 0 f32, 30 bf16", _cache("keys")),
    "cache-type-v": Option(int, "must be the same", _cache("values")),
}
"""Those that act."""

IDLE: dict[type, tuple[str, ...]] = {
    bool: (
        *("cpu-moe", "mask-valid", "strict-cpu", "mask-valid-batch", "strict-cpu-batch", "no-perf-sampling"),
        *("timing-per-token", "always-regenerate-image-embd", "lora-init-without-apply", "hellaswag"),
        *("winogrande", "multiple-choice", "kl-divergence", "usage", "use-color", "special", "interactive"),
        *("interactive-first", "prompt-cache-all", "prompt-cache-ro", "escape", "multiline-input"),
        *("simple-io", "cont-batching", "no-perf", "ctx-shift", "input-prefix-bos", "use-mlock", "use-mmap"),
        *("verbose-prompt", "display-prompt", "no-kv-offload", "warmup", "check-tensors", "webui"),
        *("enable-chat-template", "endpoint-slots", "endpoint-props", "endpoint-metrics", "log-json"),
        *("is-pp-shared", "process-output", "compute-ppl", "spm-infill", "batched-bench-output-jsonl"),
    ),
    int: (
        *("main-gpu", "n-gpu-layers", "n-cpu-moe", "batch-size", "ubatch-size", "n-keep", "n-chunks"),
        *("n-parallel", "n-sequences", "grp-attn-w", "n-print", "priority", "poll", "priority-batch"),
        *("poll-batch", "numa", "threads", "threads-batch", "n-prev", "n-probs", "verbosity"),
        *("dry-allowed-length", "dry-last-n-penalty", "n-ctx-speculative", "n-max-speculative"),
        *("n-min-speculative", "n-gpu-layers-speculative", "control-vector-layer-start"),
        *("control-vector-layer-end", "ppl-stride", "ppl-output-type", "hellaswag-tasks"),
        *("winogrande-tasks", "multiple-choice-tasks", "port", "timeout-read", "timeout-write"),
        *("n-threads-http", "n-cache-reuse", "n-pp", "n-tg", "n-pl", "chunk-size", "n-junk", "i-pos"),
        *("n-out-freq", "n-save-freq", "i-chunk", "n-pca-batch", "n-pca-iterations"),
    ),
    float: (
        *("xtc-threshold", "dynatemp-exponent", "dry-base", "mirostat-eta", "p-split-speculative"),
        *("p-min-speculative", "slot-prompt-similarity"),
    ),
    str: (
        *("tensor-split", "split-mode", "flash-attn", "load-mode", "model-alias", "chat-template"),
        *("embd-out", "embd-sep", "hostname", "chunk-separator", "cvector-dimre-method"),
    ),
}
"""Those that change nothing, by type: the host has decided (device, threads, tokens in a pass), or the plugin
itself does nothing with them."""

FIXED: dict[str, tuple[float | int | str, ...]] = {
    "rope-freq-base": (0.0,),
    "rope-freq-scale": (0.0, 1.0),
    "yarn-ext-factor": (-1.0,),
    "yarn-attn-factor": (-1.0, 1.0),
    "yarn-beta-fast": (-1.0, 32.0),
    "yarn-beta-slow": (-1.0, 1.0),
    "yarn-orig-ctx": (0,),
    "rope-scaling-type": (-1,),
    "pooling-type": (-1,),
    "attention-type": (-1,),
    "grp-attn-n": (1,),
    "min-keep": (0, 1),
    "xtc-probability": (0.0,),
    "dynatemp-range": (0.0,),
    "dry-multipier": (0.0,),
    "mirostat": (0,),
    "reranking": (False,),
    "tts": (False,),
    "input-prefix": ("",),
    "input-suffix": ("",),
}
"""Those that may only have the value that says "as the model has it" or "off". The plugin spells them so."""

NAMING = (
    *("mmproj", "image", "model-vocoder", "tts-output-file", "tts-speaker-file", "hf-repo-vocoder"),
    *("hf-file-vocoder", "model-url-vocoder", "model-url", "hf-token", "hf-repo", "hf-file", "prompt-file"),
    *("path-prompt-cache", "lookup-cache-static", "lookup-cache-dynamic", "logits-file", "public-path"),
    *("ssl-file-key", "ssl-file-cert", "slot-save-path", "context-files", "out-file"),
    *("cvector-positive-file", "cvector-negative-file", "lora"),
)
"""Those that name a file or an address. They may only be empty: a guest names nothing of the host."""


def read_options(raw: bytes, given: Options, log: Log) -> Options:
    """Return `given`, changed as a guest's JSON says.

    Args:
        raw: UTF-8.
        given: what holds without it.
        log: gets a sentence about options that change nothing.

    Raises:
        NnError: not a JSON object, an option of the wrong type or with a value that it may not have.
    """
    idle: list[str] = []
    unknown: list[str] = []
    options = given
    for name, value in _object(raw).items():
        options, known = _apply(name, value, options, idle)
        if not known:
            unknown.append(name)
    if options.keys != options.values:
        raise NnError(
            Errno.UNSUPPORTED_OPERATION,
            f"a KV cache with keys in {options.keys.name.lower()} and values in {options.values.name.lower()}"
            " was asked for; give cache-type-k and cache-type-v the same type",
        )
    if options.grammar and options.schema:
        raise NnError(Errno.INVALID_ARGUMENT, "a grammar and a json-schema were given; a text follows one")
    if idle and options.log:
        log(INFO, f"wasi-nn: options that change nothing here: {', '.join(idle)}")
    if unknown:
        log(
            WARNING,
            f"wasi-nn: options that do not exist, and change nothing: {', '.join(map(repr, unknown))}",
        )
    return options


def _apply(name: str, value: Any, options: Options, idle: list[str]) -> tuple[Options, bool]:
    """The options with one of them set, and whether there is such a one."""
    if name in ACTING:
        option = ACTING[name]
        found = typed(name, value, option.kind)
        try:
            return option.change(options, found), True
        except UsageError as error:
            raise NnError(Errno.INVALID_ARGUMENT, f"the option {name!r}: {error}") from error
    for kind, names in IDLE.items():
        if name in names:
            typed(name, value, kind)
            idle.append(name)
            return options, True
    if name in NAMING:
        if typed(name, value, str):
            raise NnError(
                Errno.UNSUPPORTED_OPERATION,
                f"the option {name!r} was given; a guest cannot name a file or an address. Leave it out.",
            )
        return options, True
    if name in FIXED:
        allowed = FIXED[name]
        if typed(name, value, type(allowed[0])) not in allowed:
            raise NnError(
                Errno.UNSUPPORTED_OPERATION,
                f"the option {name!r} with {value!r} was given; here it can only be"
                f" {' or '.join(map(repr, allowed))}",
            )
        return options, True
    return options, False


def typed(name: str, value: Any, kind: type) -> Any:
    """The value of an option in its type; a whole number is a float too.

    Raises:
        NnError: it has another one.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and number:
        return float(value) if abs(value) < 2**63 else _refuse(name, value, kind)
    if kind is int and isinstance(value, int) and number and -(2**63) <= value < 2**63:
        return value
    if kind is bool and isinstance(value, bool):
        return value
    if kind is str and isinstance(value, str) and not _has_surrogates(value):
        return value
    return _refuse(name, value, kind)


def _has_surrogates(text: str) -> bool:
    """Whether JSON's escapes wrote what is no text."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def _refuse(name: str, value: Any, kind: type) -> Any:
    words: dict[type, str] = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a string of text",
    }
    raise NnError(
        Errno.INVALID_ARGUMENT,
        f"the option {name!r} was given as {json.dumps(value)[:80]}; it takes {words[kind]}",
    )


def _object(raw: bytes) -> dict[str, Any]:
    if len(raw) > MAX_CONFIG:
        raise NnError(
            Errno.TOO_LARGE, f"options of {len(raw)} bytes were given; at most {MAX_CONFIG} are taken"
        )
    try:
        found: Any = json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise NnError(Errno.INVALID_ENCODING, f"the options are not JSON: {error}") from error
    if not isinstance(found, dict):
        raise NnError(Errno.INVALID_ENCODING, "the options are JSON, but not an object of names and values")
    return cast(dict[str, Any], found)


def names() -> Sequence[str]:
    """Every option that there is, by what it does."""
    return (*ACTING, *(name for group in IDLE.values() for name in group), *FIXED, *NAMING)
