"""What a guest's constraint may be: what compiles it runs outside the guest's deadline, so it must be quick.

The compiler has its own limits on grammars and expressions. It has none on what a JSON schema intersects
(`allOf`, `$ref` or `anyOf` beside other keywords): its time grows exponentially with the patterns, and with
the product of what numbers must be multiples of.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, cast

from nocopy.errors import UsageError
from nocopy.interfaces.model_imports import ConstraintKind

MAX_CONSTRAINT = 64 << 10
"""Bytes of a schema, an expression or a grammar."""
MAX_NESTING = 200
"""Brackets that may be open at once: what compiles them calls itself for each."""
MAX_INTERSECTED = 8
"""Patterns and formats of a schema that intersects."""
MAX_DIGITS = 10_000
"""What a number may be a multiple of, without its decimal point: more takes the compiler seconds."""
COMBINING = {"allOf", "anyOf", "oneOf", "$ref", "$dynamicRef", "if"}
LEXICAL = {"pattern", "format"}


def check_constraint(kind: ConstraintKind, source: str) -> None:
    """Refuse a constraint that could take long to compile.

    Raises:
        UsageError: it could, or a schema is not JSON; the message says what to change.
    """
    check_nesting(source)
    if kind is ConstraintKind.LARK and "%json" in source:
        raise UsageError("a grammar with %json in it was given; give the schema itself, as a json_schema")
    if kind is ConstraintKind.JSON_SCHEMA:
        try:
            schema: Any = json.loads(source, parse_float=Decimal)
        except (ValueError, ArithmeticError, RecursionError) as error:
            raise UsageError(f"the json_schema constraint cannot be read: {error}") from error
        check_schema(list(objects(schema)))


def check_schema(found: list[dict[str, Any]]) -> None:
    """Refuse a schema, given as all the objects in it, that could take long to compile."""
    intersects = any("allOf" in o or (COMBINING & o.keys() and len(o) > 1) for o in found)
    lexical = sum(len(LEXICAL & o.keys()) for o in found)
    multiples = [o["multipleOf"] for o in found if isinstance(o.get("multipleOf"), int | Decimal)]
    if intersects and lexical > MAX_INTERSECTED:
        raise UsageError(
            f"a schema that combines others and has {lexical} patterns or formats was given; at most"
            f" {MAX_INTERSECTED} are allowed. Write out the alternatives."
        )
    if intersects and len(multiples) > 1:
        raise UsageError("a schema that combines others and has several multipleOf was given; keep one")
    for multiple in multiples:
        digits = Decimal(multiple).as_tuple().digits
        if len(digits) > len(str(MAX_DIGITS)) or int("".join(map(str, digits))) > MAX_DIGITS:
            raise UsageError(
                f"a schema with multipleOf {multiple} was given; at most {MAX_DIGITS} is allowed"
            )


def check_nesting(source: str) -> None:
    """Refuse brackets that are nested too deep."""
    depth = 0
    for character in source:
        if character in "([{":
            depth += 1
            if depth > MAX_NESTING:
                raise UsageError(f"a constraint with more than {MAX_NESTING} open brackets at once was given")
        elif character in ")]}":
            depth = max(0, depth - 1)


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a JSON value."""
    if isinstance(value, dict):
        yield cast(dict[str, Any], value)
        value = list(cast(dict[str, Any], value).values())
    if isinstance(value, list):
        for item in cast(list[Any], value):
            yield from objects(item)
