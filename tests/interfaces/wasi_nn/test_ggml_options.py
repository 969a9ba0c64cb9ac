"""Options of language models: each does what the table says, and no JSON does anything else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nocopy.errors import NnError
from nocopy.interfaces.wasi_nn import ggml_options
from nocopy.interfaces.wasi_nn.encoding import Errno
from nocopy.interfaces.wasi_nn.ggml_options import (
    ACTING,
    FIXED,
    IDLE,
    MAX_CONFIG,
    NAMING,
    Options,
    read_options,
)
from nocopy.memory.dtype import DType
from nocopy.session.sampler import Sampling

DOCS = (Path(__file__).parents[3] / "docs" / "wasi-nn.md").read_text()
EXAMPLES: dict[type, Any] = {bool: True, int: 3, float: 0.5, str: "some"}
WRONG: dict[type, list[Any]] = {
    bool: [0, 1, "true", None, []],
    int: [1.5, True, "3", None, {}, 2**63],
    float: ["0.5", False, None, [1]],
    str: [1, True, None, ["a"], {}, "\ud800", "a\udfff"],
}

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(scalars, lambda s: st.lists(s, max_size=3) | st.dictionaries(st.text(), s, max_size=3))
known = st.sampled_from([*ACTING, *FIXED, *NAMING, *(name for names in IDLE.values() for name in names)])


def read(options: dict[str, Any] | bytes, start: Options | None = None) -> Options:
    raw = options if isinstance(options, bytes) else json.dumps(options).encode()
    return read_options(raw, start or Options(), lambda _level, _line: None)


def logged(options: dict[str, Any]) -> list[tuple[int, str]]:
    log: list[tuple[int, str]] = []
    read_options(json.dumps(options).encode(), Options(), lambda level, line: log.append((level, line)))
    return log


def errno(options: dict[str, Any] | bytes) -> int:
    with pytest.raises(NnError) as caught:
        read(options)
    return caught.value.errno


def outcome(raw: bytes) -> int:
    try:
        read(raw)
    except NnError as error:
        return error.errno
    return Errno.SUCCESS


def test_options_act() -> None:
    found = read(
        {
            "enable-log": True,
            "stream-stdout": True,
            "ctx-size": 512,
            "n-predict": 7,
            "reverse-prompt": "User:",
            "embedding": True,
            "embd-normalize": -1,
            "temp": 1,
            "top-k": 5,
            "top-p": 0.5,
            "min-p": 0.1,
            "typ-p": 0.9,
            "repeat-penalty": 1.1,
            "presence-penalty": -0.5,
            "frequency-penalty": 0.25,
            "last-n-penalty": 32,
            "seed": 42,
            "ignore-eos": True,
            "json-schema": "{}",
            "cache-type-k": 8,
            "cache-type-v": 8,
        }
    )
    assert found == Options(
        log=True,
        stream=True,
        context=512,
        most=7,
        stop="User:",
        embedding=True,
        norm=-1,
        keys=DType.Q8_0,
        values=DType.Q8_0,
        schema="{}",
        ignore_end=True,
        sampling=Sampling(
            temperature=1.0,
            top_k=5,
            top_p=0.5,
            min_p=0.1,
            typical_p=0.9,
            repeat_penalty=1.1,
            presence_penalty=-0.5,
            frequency_penalty=0.25,
            repeat_last_n=32,
            seed=42,
        ),
    )
    assert read({"grammar": 'root ::= "a"'}).grammar == 'root ::= "a"'
    assert read({"enable-debug-log": True}).log


def test_later_options_change_earlier_ones_and_leave_the_rest() -> None:
    first = read({"temp": 0, "n-predict": 5})
    second = read({"n-predict": 6}, first)
    assert (second.sampling.temperature, second.most) == (0, 6)
    assert read({}, second) == second


@pytest.mark.parametrize(
    ("given_option", "field", "becomes"),
    [
        ({"temp": -1}, "temperature", 0),
        ({"top-k": -1}, "top_k", 0),
        ({"top-p": 2}, "top_p", 1),
        ({"typ-p": 1.5}, "typical_p", 1),
        ({"seed": -1}, "seed", None),
        ({"seed": 2**32 - 1}, "seed", None),
        ({"seed": -2}, "seed", 2**32 - 2),
    ],
)
def test_numbers_mean_what_llama_cpp_means_by_them(
    given_option: dict[str, Any], field: str, becomes: float | None
) -> None:
    assert getattr(read(given_option).sampling, field) == becomes


@pytest.mark.parametrize(
    "options",
    [
        {"ctx-size": -1},
        {"min-p": 1.5},
        {"repeat-penalty": 0},
        {"presence-penalty": 1e6},
        {"last-n-penalty": -2},
        {"embd-normalize": -2},
        {"embd-normalize": 65},
        {"cache-type-k": 2},
        {"grammar": "x", "json-schema": "{}"},
    ],
)
def test_values_out_of_range_are_invalid(options: dict[str, Any]) -> None:
    assert errno(options) == Errno.INVALID_ARGUMENT


def test_keys_and_values_have_one_type() -> None:
    assert errno({"cache-type-k": 8}) == Errno.UNSUPPORTED_OPERATION


@pytest.mark.parametrize("name", list(ACTING))
def test_acting_options_insist_on_their_type(name: str) -> None:
    for value in WRONG[ACTING[name].kind]:
        assert errno({name: value}) == Errno.INVALID_ARGUMENT


@pytest.mark.parametrize("kind", list(IDLE))
def test_idle_options_change_nothing_and_are_reported_when_asked(kind: type) -> None:
    for name in IDLE[kind]:
        assert read({name: EXAMPLES[kind]}) == Options()
        assert logged({name: EXAMPLES[kind]}) == []
        (line,) = logged({"enable-log": True, name: EXAMPLES[kind]})
        assert line == (1, f"wasi-nn: options that change nothing here: {name}")
        for value in WRONG[kind]:
            assert errno({name: value}) == Errno.INVALID_ARGUMENT


@pytest.mark.parametrize("name", NAMING)
def test_a_guest_names_no_file_and_no_address(name: str) -> None:
    assert errno({name: "/etc/passwd"}) == Errno.UNSUPPORTED_OPERATION
    assert read({name: ""}) == Options()
    assert errno({name: 1}) == Errno.INVALID_ARGUMENT


@pytest.mark.parametrize("name", list(FIXED))
def test_what_would_change_the_answer_unheard_is_refused(name: str) -> None:
    for value in FIXED[name]:
        assert read({name: value}) == Options()
    other = {bool: True, str: "x", int: 77, float: 0.77}[type(FIXED[name][0])]
    assert errno({name: other}) == Errno.UNSUPPORTED_OPERATION


def test_options_that_do_not_exist_are_named_in_the_log() -> None:
    assert logged({"frobnicate": 1, "temp": 1, "n_predict": 3}) == [
        (2, "wasi-nn: options that do not exist, and change nothing: 'frobnicate', 'n_predict'")
    ]


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'"temp"', b"null", b"\xff", b"[" * 100_000, b"1" * 5000])
def test_what_is_no_object_is_an_encoding_error(raw: bytes) -> None:
    assert errno(raw) == Errno.INVALID_ENCODING


def test_long_options_are_refused() -> None:
    assert errno(b" " * (MAX_CONFIG + 1)) == Errno.TOO_LARGE


@given(st.dictionaries(known | st.text(), values, max_size=4))
def test_no_json_does_anything_else(options: dict[str, Any]) -> None:
    assert outcome(json.dumps(options).encode()) in (
        Errno.SUCCESS,
        Errno.INVALID_ARGUMENT,
        Errno.UNSUPPORTED_OPERATION,
    )


@given(st.binary(max_size=200))
def test_no_bytes_do_either(raw: bytes) -> None:
    assert outcome(raw) in (
        Errno.SUCCESS,
        Errno.INVALID_ENCODING,
        Errno.INVALID_ARGUMENT,
        Errno.UNSUPPORTED_OPERATION,
    )


def test_every_option_is_in_one_list_only() -> None:
    names = list(ggml_options.names())
    assert len(names) == len(set(names))


def test_the_documentation_lists_every_option() -> None:
    words = {bool: "bool", int: "integer", float: "number", str: "string"}
    for name, option in ACTING.items():
        assert f"| `{name}` | {words[option.kind]} | {option.doc} |" in DOCS
    section = DOCS[DOCS.index("### Options") :]
    assert set(ggml_options.names()) <= set(re.findall(r"`([a-z0-9-]+)`", section))
