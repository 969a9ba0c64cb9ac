"""The part of the table of imports that is about models: its functions, structs and numbers."""

from __future__ import annotations

from dataclasses import fields
from enum import IntEnum

import numpy as np

from nocopy.interfaces.signature import Import, Param
from nocopy.session.sampler import Sampling

GENERATION_VERSION = 1


class Tokenize(IntEnum):
    """Flags of `tokenize`."""

    ADD_SPECIAL = 1
    PARSE_SPECIAL = 2


class Detokenize(IntEnum):
    """Flags of `detokenize`."""

    CONTINUES = 1
    SHOW_SPECIAL = 2


class Generate(IntEnum):
    """Flags of `session_generate`."""

    IGNORE_END = 1


class Finish(IntEnum):
    """Why `session_generate` stopped."""

    LENGTH = 0
    END = 1
    CONSTRAINT = 2
    CONTEXT = 3


class ConstraintKind(IntEnum):
    """Kinds of constraints; the names are those of `session/constraint.py`."""

    NONE = 0
    JSON_SCHEMA = 1
    JSON = 2
    REGEX = 3
    LARK = 4
    GBNF = 5


NUMBERS: dict[type[IntEnum], tuple[str, tuple[str, ...]]] = {
    Tokenize: (
        "TOKENIZE",
        (
            "put the model's own tokens around the text, such as the first one of a prompt",
            "take tokens that are written out, such as <|im_end|>, as such; not for users' text",
        ),
    ),
    Detokenize: (
        "DETOKENIZE",
        (
            "other tokens came before, so a space at the start is text",
            "write tokens that are not text as they are written out",
        ),
    ),
    Generate: ("GENERATE", ("go on past tokens that end a text",)),
    Finish: (
        "FINISH",
        (
            "`max` tokens are there",
            "the model ended its text; the token that says so was not appended",
            "the constraint is fulfilled and admits nothing more",
            "the context is full",
        ),
    ),
    ConstraintKind: (
        "CONSTRAINT",
        (
            "anything may come",
            "JSON that fits a schema",
            "any JSON",
            "text that a regular expression matches",
            "text of a grammar in Lark's notation",
            "text of a grammar in llama.cpp's notation",
        ),
    ),
}
"""For the header: the word in the names of the constants, and what each one means, in order."""

NUMERIC = {"float": "<f4", "int": "<i4"}
_SAMPLING = [(f.name, NUMERIC[str(f.type)]) for f in fields(Sampling) if str(f.type) in NUMERIC]
"""Options that are single numbers, in the order of `Sampling`."""

BIAS = np.dtype([("token", "<u4"), ("bias", "<f4")])
"""What is added to the logit of one token."""

BIAS_DOC = {"token": "its number", "bias": "added to its logit; -INFINITY forbids it"}

GENERATION = np.dtype(
    [
        ("version", "<u4"),
        ("flags", "<u4"),
        *_SAMPLING,
        ("bias_count", "<u4"),
        ("biases", "<u8"),
        ("seed", "<u8"),
        ("draws", "<u8"),
        ("finish", "<u4"),
        ("reserved", "<u4"),
    ]
)
"""`session_generate`'s struct. Fields are only ever appended, with another version."""

GENERATION_DOC = {
    "version": "NOCOPY_GENERATION_VERSION",
    "flags": "NOCOPY_GENERATE_* added up",
    "temperature": "0 is greedy; 1 draws from the model's own distribution",
    "top_k": "keep the k likeliest; 0 keeps all",
    "top_p": "keep the likeliest until their probabilities sum to p",
    "min_p": "keep those at least this fraction as likely as the likeliest",
    "typical_p": "keep those whose surprise is nearest the expected one, until they sum to p",
    "repeat_penalty": "divide logits of recent tokens by this",
    "frequency_penalty": "subtract this for each time that a token is among the recent ones",
    "presence_penalty": "subtract this if a token is among the recent ones",
    "repeat_last_n": "how many tokens of the session are recent; 0 turns penalties off, -1 means all",
    "bias_count": "how many biases there are",
    "biases": "address of a nocopy_bias for each",
    "seed": "of the random numbers",
    "draws": "random numbers drawn so far, in and out: a generation in pieces is the same as in one",
    "finish": "out: one of NOCOPY_FINISH_*",
    "reserved": "0",
}


def generation_defaults() -> dict[str, float]:
    """The value of each field of a new `GENERATION`."""
    values: dict[str, float] = {name: getattr(Sampling(), name) for name, _ in _SAMPLING}
    return {name: values.get(name, 0) for name in GENERATION.names or ()} | {"version": GENERATION_VERSION}


_MODEL = Param("model", "i32", "int32_t")
_SESSION = Param("session", "i32", "int32_t")
_TOKENS = Param("tokens", "ptr", "const int32_t *")
_TOKENS_OUT = Param("tokens", "ptr", "int32_t *")
_COUNT = Param("count", "i32", "uint32_t")
_TEXT = Param("text", "ptr", "const char *")
_TEXT_OUT = Param("text", "ptr", "char *")
_LEN = Param("len", "i32", "uint32_t")
_MAX = Param("max", "i32", "uint32_t")
_REGION = (Param("at", "ptr", "void *"), Param("len", "ptr", "size_t"))
_SHAPE = (Param("context", "i32", "uint32_t"), Param("kv", "i32", "uint32_t"))
_FLAGS = Param("flags", "i32", "uint32_t")

MODEL_IMPORTS: tuple[Import, ...] = (
    Import(
        "model_open",
        (Param("name", "ptr", "const char *"), _LEN),
        'Open the model that the host granted under this name, such as "default". Returns its handle.\n'
        "Handles of models and sessions are never used again.",
    ),
    Import("model_close", (_MODEL,), "Let go of a model, after its sessions."),
    Import(
        "model_info",
        (_MODEL, _TEXT_OUT, _LEN),
        "Write what a model is, as JSON: architecture, context, vocabulary, width, layers, end_tokens,\n"
        "kv_bytes_per_token, ... At most `len` bytes, the last of them a NUL. Returns the bytes of the\n"
        "whole text without its NUL.",
    ),
    Import(
        "session_size",
        (_MODEL, *_SHAPE, Param("bytes", "ptr", "uint64_t *")),
        "Write how many bytes a session takes: `context` tokens at most, its keys and values of type `kv`\n"
        "(NOCOPY_F16, NOCOPY_Q8_0, NOCOPY_F32 or NOCOPY_BF16).",
    ),
    Import(
        "session_open",
        (_MODEL, *_REGION, *_SHAPE),
        "Open a session in `len` bytes of your memory, at a multiple of 65536: all that it remembers lies\n"
        "there, and the device works on it there. No other open session may lie there. Returns its handle.",
    ),
    Import(
        "session_fork",
        (_SESSION, *_REGION),
        "Open a session that continues from where this one is, constraint and all, in other bytes.",
    ),
    Import(
        "session_append",
        (_SESSION, _TOKENS, _COUNT),
        "Feed tokens: their keys and values join the cache; the logits after the last one are written.",
    ),
    Import(
        "session_extend",
        (_SESSION, _TOKENS, _COUNT),
        "Make the session hold exactly these tokens: feed only those that it does not have yet, at least\n"
        "the last. Returns how many it had.",
    ),
    Import(
        "session_truncate",
        (_SESSION, Param("length", "i32", "uint32_t")),
        "Forget all but the first `length` tokens. There are no logits until the next append.",
    ),
    Import("session_length", (_SESSION,), "How many tokens the session holds."),
    Import(
        "session_logits",
        (_SESSION, Param("address", "ptr", "uint64_t *")),
        "Write the address of the logits after the last token: a float for each token of the vocabulary, in\n"
        "your own memory, which each pass writes again. What you change there changes what is drawn next.\n"
        "Returns how many there are.",
    ),
    Import(
        "session_constrain",
        (_SESSION, Param("kind", "i32", "uint32_t"), _TEXT, _LEN),
        "Allow only what fits from now on: `kind` is one of NOCOPY_CONSTRAINT_*, the text is the schema,\n"
        "expression or grammar. It follows what is generated over any number of calls, until it is set anew.",
    ),
    Import(
        "session_generate",
        (_SESSION, Param("options", "ptr", "nocopy_generation *"), _TOKENS_OUT, _MAX),
        "Draw at most `max` tokens, append each to the session and write it as it comes. Returns how many;\n"
        "options->finish says why it stopped.",
    ),
    Import("session_close", (_SESSION,), "Let go of a session. Its bytes stay as they are."),
    Import(
        "tokenize",
        (_MODEL, _TEXT, _LEN, _TOKENS_OUT, _MAX, _FLAGS),
        "Cut UTF-8 text into tokens and write at most `max` of them. `flags`: NOCOPY_TOKENIZE_* added up.\n"
        "Returns how many there are.",
    ),
    Import(
        "detokenize",
        (_MODEL, _TOKENS, _COUNT, _TEXT_OUT, _MAX, _FLAGS),
        "Write the exact bytes of tokens, at most `max`, without a NUL. `flags`: NOCOPY_DETOKENIZE_* added\n"
        "up. Returns how many there are. A character may end in the next token.",
    ),
    Import(
        "chat_template",
        (_MODEL, Param("messages", "ptr", "const char *"), _LEN, _TEXT_OUT, _MAX),
        "Turn a conversation into the prompt that the model was trained on, up to where its answer begins;\n"
        "tokenize it with NOCOPY_TOKENIZE_PARSE_SPECIAL. `messages` is JSON: an array of objects with role\n"
        "and content, or an object with such messages and, if need be, tools and add_generation_prompt.\n"
        "Writes at most `max` bytes of UTF-8, without a NUL. Returns how many there are.",
    ),
)
