"""Schemas mean what llama.cpp takes them to mean."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nocopy.interfaces.wasi_nn.ggml_schema import explicit

PRODUCT = {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}
CLOSED = PRODUCT | {"additionalProperties": False}


def read(schema: Any) -> Any:
    return json.loads(explicit(json.dumps(schema)))


@pytest.mark.parametrize(
    ("schema", "wanted"),
    [
        ({}, {}),
        ({"type": "integer"}, {"type": "integer"}),
        ({"enum": [1, "a"]}, {"enum": [1, "a"]}),
        ({"items": PRODUCT, "minItems": 5}, {"type": "array", "items": CLOSED, "minItems": 5}),
        ({"prefixItems": [PRODUCT]}, {"type": "array", "prefixItems": [CLOSED]}),
        ({"pattern": "^a+$"}, {"type": "string", "pattern": "^a+$"}),
        (PRODUCT, CLOSED),
        ({"properties": {"id": {"type": "integer"}}, "required": ["id"]}, CLOSED),
        (PRODUCT | {"additionalProperties": True}, PRODUCT | {"additionalProperties": True}),
        ({"type": "object"}, {"type": "object"}),
        ({"anyOf": [PRODUCT, {"items": {}}]}, {"anyOf": [CLOSED, {"items": {}, "type": "array"}]}),
        ({"allOf": [PRODUCT, {"properties": {"b": {}}}]}, {"allOf": [PRODUCT, {"properties": {"b": {}}}]}),
        ({"$defs": {"p": PRODUCT}, "$ref": "#/$defs/p"}, {"$defs": {"p": CLOSED}, "$ref": "#/$defs/p"}),
        ({"items": {}, "properties": {}}, {"items": {}, "properties": {}}),
        (
            {"properties": {"items": {"type": "string"}, "properties": {"items": {}}}},
            {
                "type": "object",
                "properties": {"items": {"type": "string"}, "properties": {"type": "array", "items": {}}},
                "additionalProperties": False,
            },
        ),
    ],
)
def test_what_is_implied_is_written_out(schema: Any, wanted: Any) -> None:
    assert read(schema) == wanted
    assert read(wanted) == wanted


@pytest.mark.parametrize("text", ["", "{", "[1]", "true", "null"])
def test_what_is_no_object_stays(text: str) -> None:
    assert explicit(text) == text


leaves = st.sampled_from([{}, True, {"type": "integer"}, {"type": "string"}, {"const": 1}, PRODUCT])
schemas = st.recursive(
    leaves,
    lambda s: st.fixed_dictionaries(
        {},
        optional={
            "items": s,
            "properties": st.dictionaries(st.sampled_from("ab"), s, max_size=2),
            "anyOf": st.lists(s, min_size=1, max_size=2),
            "allOf": st.lists(s, min_size=1, max_size=2),
            "not": s,
            "type": st.sampled_from(["object", "array", "string"]),
        },
    ),
    max_leaves=6,
)


@given(schemas)
def test_writing_it_out_again_changes_nothing(schema: Any) -> None:
    once = read(schema)
    assert read(once) == once
