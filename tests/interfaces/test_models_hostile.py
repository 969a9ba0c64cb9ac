"""Whatever a guest hands to the model functions, it gets an error code and goes on; others notice nothing."""

from __future__ import annotations

import gc
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nocopy.device.protocol import Device
from nocopy.device.reference import ReferenceDevice
from nocopy.errors import ModelFileError
from nocopy.interfaces.attachment import ComputeLimits
from nocopy.interfaces.grip import turns_of
from nocopy.interfaces.model_imports import GENERATION, MODEL_IMPORTS, ConstraintKind
from nocopy.memory.dtype import DType
from tests.interfaces.model_guest import OPTIONS, OUT, PAGE, TEXT, ModelGuest
from tests.models import tiny as tiny_model
from tests.models.tiny import VOCABULARY, write_tiny

PROMPT = [0, 72, 101, 108]
USAGE, LIMIT, CLOSED, TAPE = -2, -3, -4, -7
F32 = int(DType.F32)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture
def device() -> Iterator[Device]:
    device = ReferenceDevice()
    yield device
    device.close()


@pytest.fixture(params=["wasm32", "memory64"])
def g(request: pytest.FixtureRequest, device: Device, tiny: Path) -> Iterator[ModelGuest]:
    with ModelGuest(device, tiny, memory64=request.param == "memory64") as g:
        yield g


@pytest.fixture
def model(g: ModelGuest) -> int:
    return g.open()


@pytest.fixture
def session(g: ModelGuest, model: int) -> int:
    session = g.session(model)
    g.append(session, PROMPT)
    return session


def refused(g: ModelGuest, code: int, message: str, name: str, *args: int) -> None:
    assert g.call(name, *args) == code, (name, args)
    assert message in g.error


# Handles


def test_handles_are_never_used_again(g: ModelGuest, model: int) -> None:
    seen = {model}
    size = g.size(model, 50)
    for _ in range(20):
        handle = g.ok("session_open", model, PAGE, size, 50, F32)
        assert handle not in seen
        seen.add(handle)
        g.ok("session_close", handle)
        refused(g, CLOSED, "is closed", "session_length", handle)
        refused(g, CLOSED, "is closed", "session_close", handle)
    again = g.open()
    assert again not in seen
    g.ok("model_close", again)
    refused(g, CLOSED, "is closed", "model_close", again)


def test_handles_of_another_kind_or_guest_name_nothing(
    g: ModelGuest, model: int, session: int, device: Device, tiny: Path
) -> None:
    refused(g, USAGE, "no such session", "session_length", model)
    refused(g, USAGE, "no such model", "model_info", session, 0, 0)
    for wild in (0, -1, 2**31 - 1, -(2**31)):
        refused(g, USAGE, "no such session", "session_length", wild)
        refused(g, USAGE, "no such model", "model_close", wild)
    with ModelGuest(device, tiny) as other:
        other.session(other.open())
        refused(other, USAGE, "no such session", "session_append", session, OUT, 1)
        refused(other, USAGE, "no such model", "session_open", model, PAGE, 8 * PAGE, 50, F32)
        refused(other, USAGE, "no such session", "session_fork", session, 20 * PAGE, 8 * PAGE)
    assert g.ok("session_length", session) == len(PROMPT)


def test_a_model_with_sessions_stays(g: ModelGuest, model: int, session: int) -> None:
    refused(g, USAGE, "open sessions", "model_close", model)
    g.ok("session_close", session)
    g.ok("model_close", model)


# Names


@pytest.mark.parametrize("name", ["", "other", "default\0", "/etc/passwd", "../default", "DEFAULT"])
def test_only_granted_names_open(g: ModelGuest, name: str) -> None:
    refused(g, USAGE, "this guest was granted 'default'", "model_open", *g.put(name))


def test_a_path_is_no_name(g: ModelGuest, tiny: Path) -> None:
    refused(g, USAGE, "this guest was granted", "model_open", *g.put(str(tiny)))
    refused(g, USAGE, "at most 256", "model_open", TEXT, 257)


def test_a_broken_model_is_an_error(device: Device, tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with ModelGuest(device, path) as g:
        assert g.call("model_open", *g.put("default")) == ModelFileError.code
    assert not turns_of(device).shared


# Regions


@pytest.mark.parametrize(
    ("at", "size", "message"),
    [
        (PAGE + 4, 4 * PAGE, "multiple of 65536"),
        (PAGE, 0, "in 0 bytes"),
        (PAGE, PAGE, "it takes"),
        (33 * PAGE, 4 * PAGE, "the memory has bytes"),
        (30 * PAGE, 4 * PAGE, "the memory has bytes"),
        (0, 2**32 - 1, "the memory has bytes"),
        (2**32 - PAGE, 2**32 - 1, "the memory has bytes"),
    ],
)
def test_regions_that_cannot_be(g: ModelGuest, model: int, at: int, size: int, message: str) -> None:
    refused(g, USAGE, message, "session_open", model, at, size, 200, F32)
    session = g.session(model)
    refused(g, USAGE, message, "session_fork", session, at, size)


def test_regions_at_the_end_of_64_bits(device: Device, tiny: Path) -> None:
    with ModelGuest(device, tiny, memory64=True) as g:
        model = g.open()
        for at, size in ((2**64 - PAGE, PAGE), (2**64 - PAGE, 2**64 - 1), (PAGE, 2**64 - 1), (2**63, 2**63)):
            refused(g, USAGE, "the memory has bytes", "session_open", model, at, size, 200, F32)


@pytest.mark.parametrize("shift", [-1, 0, 1])
def test_regions_do_not_overlap(g: ModelGuest, model: int, shift: int) -> None:
    size = g.size(model, 200)
    assert size >= 2 * PAGE
    first = g.ok("session_open", model, 8 * PAGE, size, 200, F32)
    refused(g, USAGE, "another lies in", "session_open", model, (8 + shift) * PAGE, size, 200, F32)
    refused(g, USAGE, "another lies in", "session_fork", first, (8 + shift) * PAGE, size)
    g.ok("session_open", model, 8 * PAGE + size, size, 200, F32)
    g.ok("session_close", first)
    g.ok("session_open", model, 8 * PAGE, size, 200, F32)


@pytest.mark.parametrize("context", [0, 257, 2**31, 2**32 - 1])
def test_contexts_that_cannot_be(g: ModelGuest, model: int, context: int) -> None:
    refused(g, USAGE, "this model has 1 to 256", "session_size", model, context, F32, 8)
    refused(g, USAGE, "this model has 1 to 256", "session_open", model, PAGE, 8 * PAGE, context, F32)


@pytest.mark.parametrize("kv", [0, 4, 5, 17, 18, 255, 2**32 - 1])
def test_types_that_no_cache_has(g: ModelGuest, model: int, kv: int) -> None:
    refused(g, USAGE, "a KV cache of type", "session_size", model, 100, kv, 8)
    refused(g, USAGE, "a KV cache of type", "session_open", model, PAGE, 8 * PAGE, 100, kv)


def test_quotas(device: Device, tiny: Path) -> None:
    limits = ComputeLimits(models=2, sessions=2, pinned=5 * PAGE)
    with ModelGuest(device, tiny, compute_limits=limits) as g:
        models = [g.open(), g.open()]
        refused(g, LIMIT, "may have 2", "model_open", *g.put("default"))
        size = g.size(models[0], 200)
        assert size <= 3 * PAGE
        session = g.ok("session_open", models[0], PAGE, size, 200, F32)
        refused(g, LIMIT, "may pin", "session_open", models[0], 8 * PAGE, 5 * PAGE, 200, F32)
        small = g.size(models[1], 1)
        g.ok("session_open", models[1], 8 * PAGE, small, 1, F32)
        refused(g, LIMIT, "may have 2", "session_fork", session, 16 * PAGE, size)


# Pointers and counts


def test_pointers_that_are_not_there(g: ModelGuest, model: int, session: int) -> None:
    end = g.memory.size
    g.options()
    outside = "the memory has bytes"
    for at in (end, end - 8 + 8, 2**32 - 8):
        refused(g, USAGE, outside, "session_append", session, at, 2)
        refused(g, USAGE, outside, "session_extend", session, at, 2)
        refused(g, USAGE, outside, "session_generate", session, at, OUT, 2)
        refused(g, USAGE, outside, "session_generate", session, OPTIONS, at, 3)
        refused(g, USAGE, outside, "session_logits", session, at)
        refused(g, USAGE, outside, "session_size", model, 10, F32, at)
        refused(g, USAGE, outside, "session_constrain", session, 1, at, 4)
        refused(g, USAGE, outside, "tokenize", model, at, 9, OUT, 4, 0)
        refused(g, USAGE, outside, "tokenize", model, TEXT, 4, at, 4, 0)
        refused(g, USAGE, outside, "detokenize", model, at, 4, OUT, 4, 0)
        refused(g, USAGE, outside, "detokenize", model, OUT, 0, at, 9, 0)
        refused(g, USAGE, outside, "chat_template", model, at, 9, OUT, 4)
        refused(g, USAGE, outside, "model_open", at, 9)
        refused(g, USAGE, outside, "model_info", model, at, 9)
    assert g.ok("session_length", session) == len(PROMPT)
    g.append(session, [1])


def test_pointers_that_are_not_aligned(g: ModelGuest, model: int, session: int) -> None:
    g.options()
    refused(g, USAGE, "multiple of 4", "session_append", session, OUT + 1, 1)
    refused(g, USAGE, "multiple of 4", "session_generate", session, OPTIONS, OUT + 2, 1)
    refused(g, USAGE, "multiple of 8", "session_generate", session, OPTIONS + 4, OUT, 1)
    refused(g, USAGE, "multiple of 8", "session_logits", session, 12)
    refused(g, USAGE, "multiple of 4", "detokenize", model, OUT + 2, 1, TEXT, 9, 0)


def test_huge_counts(g: ModelGuest, model: int, session: int) -> None:
    g.options()
    most = 2**32 - 1
    refused(g, USAGE, "there is room for 200", "session_append", session, 0, most)
    refused(g, USAGE, "there is room for 200", "session_extend", session, 0, most)
    refused(g, USAGE, "the memory has bytes", "session_generate", session, OPTIONS, OUT, most)
    refused(g, USAGE, "at most", "tokenize", model, 0, most, 0, 0, 0)
    refused(g, USAGE, "room for", "detokenize", model, 0, most, 0, 0, 0)
    refused(g, USAGE, "at most", "session_constrain", session, 1, 0, most)
    refused(g, USAGE, "at most", "chat_template", model, 0, most, 0, 0)
    refused(g, USAGE, "truncating to", "session_truncate", session, most)


# What they hold


@pytest.mark.parametrize("token", [-1, VOCABULARY, 2**31 - 1, -(2**31)])
def test_tokens_that_the_model_does_not_have(g: ModelGuest, model: int, session: int, token: int) -> None:
    refused(g, USAGE, f"token {token}", "session_append", session, *g.tokens([1, token]))
    refused(g, USAGE, f"token {token}", "session_extend", session, *g.tokens([*PROMPT, token]))
    assert g.call("detokenize", model, *g.tokens([token]), TEXT, 9, 0) == -21
    assert g.ok("session_length", session) == len(PROMPT)
    g.logits(session)


def test_no_tokens(g: ModelGuest, session: int) -> None:
    refused(g, USAGE, "no tokens", "session_append", session, OUT, 0)
    refused(g, USAGE, "no tokens", "session_extend", session, OUT, 0)


def test_an_empty_session_has_nothing_to_draw_from(g: ModelGuest, model: int) -> None:
    g.options()
    empty = g.session(model)
    refused(g, USAGE, "Append tokens first", "session_generate", empty, OPTIONS, OUT, 4)
    refused(g, USAGE, "Append tokens first", "session_logits", empty, 8)


def test_text_that_is_not_utf8(g: ModelGuest, model: int, session: int) -> None:
    at, size = g.put(b"ab\xff\xfe")
    for call in (
        ("model_open", at, size),
        ("tokenize", model, at, size, OUT, 9, 0),
        ("session_constrain", session, 1, at, size),
        ("chat_template", model, at, size, OUT, 9),
    ):
        refused(g, USAGE, "not UTF-8: byte 2", *call)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 0}, "version 0"),
        ({"version": 2}, "version 2"),
        ({"flags": 2}, "flags 0x2"),
        ({"reserved": 1}, "reserved"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": float("inf")}, "top_p"),
        ({"min_p": 1.5}, "min_p"),
        ({"top_k": -1}, "top_k"),
        ({"repeat_last_n": -2}, "repeat_last_n"),
        ({"bias_count": 1, "biases": 2**63}, "the memory has bytes"),
        ({"bias_count": 1, "biases": 2**64 - 4}, "the memory has bytes"),
        ({"bias_count": 2**32 - 1}, "the model has 400"),
        ({"logit_bias": {VOCABULARY: 1.0}}, "logit_bias names token 400"),
        ({"logit_bias": {5: float("nan")}}, "token 5 was given as NaN"),
        ({"logit_bias": {5: float("inf")}}, "not numbers"),
    ],
)
def test_options_that_cannot_be(g: ModelGuest, session: int, change: dict[str, float], message: str) -> None:
    refused(g, USAGE, message, "session_generate", session, g.options(**change), OUT, 4)
    assert g.ok("session_length", session) == len(PROMPT)
    assert g.generate(session, 2, flags=1)


def test_options_at_the_end_of_their_range(g: ModelGuest, session: int) -> None:
    extreme = {
        "seed": 2**64 - 1,
        "draws": 2**64 - 1,
        "top_k": 2**31 - 1,
        "repeat_last_n": -1,
        "temperature": 100,
    }
    assert len(g.generate(session, 2, flags=1, **extreme)) == 2
    assert g.option("draws") == 1  # it wraps


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_numbers(g: ModelGuest, session: int, value: float) -> None:
    g.logits(session)[:] = value
    refused(g, USAGE, "not numbers", "session_generate", session, g.options(), OUT, 4)
    g.logits(session)[:] = 0
    assert len(g.generate(session, 4, flags=1)) == 4


def test_weights_that_are_not_numbers(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng
    monkeypatch.setattr(tiny_model.np.random, "default_rng", lambda _seed: Garbage(rng(0)))
    path = write_tiny(tmp_path / "garbage.gguf")
    monkeypatch.undo()
    with np.errstate(all="ignore"), ModelGuest(device, path) as g:
        session = g.session(g.open())
        g.append(session, PROMPT)
        refused(g, USAGE, "not numbers", "session_generate", session, g.options(), OUT, 4)


class Garbage:
    """Random numbers of which some are none."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def normal(self, mean: float, deviation: float, shape: tuple[int, ...]) -> np.ndarray:
        values = self._rng.normal(mean, deviation, shape)
        values.flat[::7] = np.nan
        return values


def test_a_cache_of_garbage_harms_nobody(g: ModelGuest, model: int, session: int) -> None:
    other = g.session(model)
    g.append(other, PROMPT)
    wanted = g.logits(other).copy()
    noise = np.random.default_rng(1).bytes(g.size(model, 200))
    g.memory.write(PAGE, noise)  # the first session: its positions, its frequencies, its cache
    with np.errstate(all="ignore"):
        g.append(session, [1])
        result = g.call("session_generate", session, g.options(flags=1), OUT, 3)
    assert result in (USAGE, 3)
    g.ok("session_truncate", other, 1)
    g.ok("session_extend", other, *g.tokens(PROMPT))
    assert np.allclose(g.logits(other), wanted, rtol=1e-4, atol=1e-5)


# Constraints and conversations


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        (ConstraintKind.JSON_SCHEMA, "{"),
        (ConstraintKind.JSON_SCHEMA, "[" * 5000),
        (ConstraintKind.JSON_SCHEMA, '{"anyOf":[' * 150 + "{}" + "]}" * 150),
        (ConstraintKind.JSON_SCHEMA, '{"type": "nothing"}'),
        (ConstraintKind.JSON_SCHEMA, '{"$ref": "file:///etc/passwd"}'),
        (ConstraintKind.JSON_SCHEMA, '{"multipleOf": 1000003}'),
        (ConstraintKind.JSON_SCHEMA, '{"multipleOf": 0.123456789}'),
        (ConstraintKind.JSON_SCHEMA, '{"multipleOf": 1e999999999}'),
        (
            ConstraintKind.JSON_SCHEMA,
            json.dumps({"allOf": [{"pattern": f"(a|b)*c(a|b){{{i}}}"} for i in range(40)]}),
        ),
        (
            ConstraintKind.JSON_SCHEMA,
            json.dumps({"allOf": [{"type": "integer", "multipleOf": p} for p in (7, 11, 13, 17, 19, 23)]}),
        ),
        (ConstraintKind.REGEX, "(" * 5000),
        (ConstraintKind.REGEX, "["),
        (ConstraintKind.LARK, "start: " + "(" * 5000),
        (ConstraintKind.LARK, "start: nothing"),
        (ConstraintKind.LARK, 'start: %json {"pattern": "a"}'),
        (ConstraintKind.GBNF, "root ::= " + "(" * 5000),
        (6, ""),
        (2**32 - 1, ""),
    ],
)
def test_constraints_that_cannot_be(g: ModelGuest, session: int, kind: int, source: str) -> None:
    at, size = g.put(source, 24 * PAGE)
    began = time.monotonic()
    assert g.call("session_constrain", session, kind, at, size) == USAGE
    assert time.monotonic() - began < 5
    assert "constraint" in g.error or "schema" in g.error or "grammar" in g.error
    assert len(g.generate(session, 2, flags=1)) == 2


@pytest.mark.parametrize(
    "source",
    ["", "{", "7", '"hi"', "[1]", "{}", '{"messages": 3}', '{"messages": [], "more": 1}', "[" * 5000,
     '{"messages": [], "tools": 4}', "1" * 5000],
)  # fmt: skip
def test_conversations_that_are_none(g: ModelGuest, model: int, source: str) -> None:
    refused(g, USAGE, "a conversation was given", "chat_template", model, *g.put(source), OUT, 99)


def test_a_model_without_a_template_says_so(device: Device, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "plain.gguf", template=None)
    with ModelGuest(device, path) as g:
        assert g.call("chat_template", g.open(), *g.put("[]"), OUT, 99) == -20


# Everything at once


@pytest.mark.parametrize("seed", range(6))
def test_any_arguments_at_all(g: ModelGuest, model: int, session: int, seed: int) -> None:
    rng = random.Random(seed)
    g.options(flags=1)
    places = [0, 1, 8, TEXT, OUT, OPTIONS, PAGE, g.memory.size - 4, g.memory.size, 2**31, 2**32 - 1]
    values = [*places, model, session, session + 1, 1, 2, 3, 16, 100, 200]
    for _ in range(400):
        function = rng.choice(MODEL_IMPORTS)
        result = g.call(function.name, *(rng.choice(values) for _ in function.params))
        assert isinstance(result, int)
        if rng.random() < 0.1:
            g.memory.write(TEXT, rng.randbytes(64))
    assert g.call("version") == 1


def test_a_guest_that_is_forgotten_gives_everything_back(device: Device, tiny: Path) -> None:
    dropped = ModelGuest(device, tiny)
    session = dropped.session(dropped.open())
    dropped.append(session, PROMPT)
    assert len(turns_of(device).shared) == 1
    del dropped
    gc.collect()
    assert not turns_of(device).shared


def test_an_expression_that_explodes_is_an_error_when_it_does(g: ModelGuest, session: int) -> None:
    at, size = g.put("((((a{1000}){1000}){1000}){1000}){1000}")
    began = time.monotonic()
    g.ok("session_constrain", session, ConstraintKind.REGEX, at, size)
    assert g.call("session_generate", session, g.options(), OUT, 4) == USAGE
    assert "constraint failed" in g.error
    assert time.monotonic() - began < 20


def test_what_was_reserved_is_what_the_header_says() -> None:
    assert GENERATION.itemsize == 80
