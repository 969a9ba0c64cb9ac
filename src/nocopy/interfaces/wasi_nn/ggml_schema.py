"""JSON schemas as llama.cpp reads them: what guests were written for, and more than the standard says.

A schema without a type has the one that its keywords imply, so that "items" makes an array; and an object has
no properties beside those that are named, unless "additionalProperties" says so.
"""

from __future__ import annotations

import json
from typing import Any, cast

IMPLIED = {
    "object": ("properties", "additionalProperties"),
    "array": ("items", "prefixItems"),
    "string": ("pattern", "minLength", "maxLength"),
}
"""Types, with keywords that imply them."""
ONE = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")
SEVERAL = ("prefixItems", "items", "anyOf", "oneOf", "allOf")
NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Keywords whose value is a schema, a list of them, or has them by name."""
COMBINING = ("allOf", "anyOf", "oneOf", "$ref")


def explicit(schema: str) -> str:
    """The schema with what llama.cpp adds to it written out; text that is no JSON object as it is."""
    try:
        found: Any = json.loads(schema)
    except ValueError:
        return schema  # whoever compiles it says what is wrong
    return json.dumps(_explicit(found, closed=True)) if isinstance(found, dict) else schema


def _explicit(value: Any, *, closed: bool) -> Any:
    """A schema. One of several that must all fit (`closed` is False) leaves other properties to the rest."""
    if not isinstance(value, dict):
        return value
    schema = dict(cast(dict[str, Any], value))
    alone = closed and not any(word in schema for word in COMBINING)
    if "type" not in schema and alone:
        implied = [kind for kind, words in IMPLIED.items() if any(word in schema for word in words)]
        if len(implied) == 1:
            schema["type"] = implied[0]
    if schema.get("type") == "object" and "properties" in schema and alone:
        schema.setdefault("additionalProperties", False)
    for word in ONE:
        if isinstance(schema.get(word), dict):
            schema[word] = _explicit(schema[word], closed=word not in ("not", "if"))
    for word in SEVERAL:
        if isinstance(schema.get(word), list):
            schema[word] = [_explicit(one, closed=word != "allOf") for one in schema[word]]
    for word in NAMED:
        if isinstance(schema.get(word), dict):
            schema[word] = {name: _explicit(one, closed=True) for name, one in schema[word].items()}
    return schema
