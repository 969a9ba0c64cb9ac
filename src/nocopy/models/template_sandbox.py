"""The sandbox that chat templates run in: Jinja's immutable one, with a budget.

Jinja's sandbox keeps a template from reaching the interpreter. It does not bound time or memory. Here a
template can repeat only through loops, calls and filters, and make values only through operators, calls,
filters, literals and output; each of these passes the budget, and none of them alone takes long.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Final, cast

from jinja2 import nodes, pass_context, pass_environment, pass_eval_context
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range

from nocopy.errors import TemplateError
from nocopy.models.template_budget import BUDGET, exceeded, limit, room, weigh
from nocopy.models.template_functions import (
    FILTERS,
    SEQUENCE_FILTERS,
    TemplateNamespace,
    methods_of,
    text_of,
)
from nocopy.models.template_nodes import CHARGE, CONCAT, MADE

PASS: Final = "jinja_pass_arg"
NEEDS: Final[dict[Any, Callable[[Context], Any]]] = {
    getattr(pass_context(lambda: None), PASS): lambda context: context,
    getattr(pass_environment(lambda: None), PASS): lambda context: context.environment,
    getattr(pass_eval_context(lambda: None), PASS): lambda context: context.eval_ctx,
}
"""What Jinja's decorators say that a function wants as its first argument."""

WIDTH: Final = re.compile(r"\d{4,}|\*")
"""A field width in a format that would print a page for one number."""


class Generation(Extension):
    """`{% generation %}` marks the assistant's text for training; here it is only text."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it so

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """Read up to the end tag and keep the body."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Environment of chat templates: white space and extensions as Hugging Face has them."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            autoescape=False,
            extensions=[Generation, loopcontrols],
            # Nothing may be computed while a template is compiled: only rendering has a budget.
            optimized=False,
            finalize=_output,
        )
        self.filters = {name: _counted(name, function) for name, function in FILTERS.items()}
        self.filters |= {CHARGE: _charge, MADE: _made, CONCAT: _concat}
        self.globals = {"range": safe_range, "dict": dict, "namespace": TemplateNamespace}

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Allow the methods of the table; for Jinja's own objects, what its sandbox allows."""
        table = methods_of(obj)
        return attr in table if table is not None else super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Replace str.format by one that reaches no attributes and prints no endless fields."""
        safe = super().wrap_str_format(value)
        if safe is None:
            return None

        def run(*args: Any, **kwargs: Any) -> str:
            _check_braces(value.__self__, (args, kwargs))
            return safe(*args, **kwargs)

        return run

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a function or method, counting what it is given and what it makes."""
        budget = BUDGET.get()
        budget.step()
        weigh((args, kwargs))
        owner = getattr(__obj, "__self__", None)
        table = methods_of(owner) if owner is not None else None
        bounded = table.get(getattr(__obj, "__name__", "")) if table else None
        if bounded is not None:
            return budget.made(bounded(owner, *args, **kwargs))
        return budget.made(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator after making sure that its result is not out of proportion."""
        check = CHECKS.get(operator)
        if check is not None:
            check(left, right)
        return BUDGET.get().made(super().call_binop(context, operator, left, right))


def _check_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > limit("bits"):
            raise exceeded("bits")
        return
    times, value = (left, right) if isinstance(left, int) else (right, left)
    if isinstance(times, int) and isinstance(value, str | list | tuple):
        sized = cast(str | list[Any], value)
        room(weigh(sized) * max(0, times))
        if not isinstance(value, str) and len(sized) * times > limit("items"):
            raise exceeded("items")


def _check_power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * abs(right) > limit("bits"):
        raise exceeded("bits")


def _check_format(left: Any, right: Any) -> None:
    if isinstance(left, str):
        if WIDTH.search(left):
            raise TemplateError(
                "the chat template formats with a width above 999; write it with a smaller one"
            )
        fields = left.count("%")
        room(len(left) + fields * (1000 * any(map(str.isdigit, left)) + weigh(right)))


def _check_braces(text: str, given: object) -> None:
    fields = text.replace("{{", "").replace("}}", "")
    if WIDTH.search(fields) or NESTED.search(fields):
        raise TemplateError("the chat template formats with a width that is above 999 or computed")
    room(len(text) + fields.count("{") * (1000 * any(map(str.isdigit, fields)) + weigh(given)))


CHECKS: Final[dict[str, Callable[[Any, Any], None]]] = {
    "*": _check_product,
    "**": _check_power,
    "%": _check_format,
}


NESTED: Final = re.compile(r"\{[^{}]*\{")
"""A format field whose width is itself a field."""


@pass_context
def _output(_context: Context, value: Any) -> str:
    """Print a value into the output. It wants the context so that Jinja does not print constants early."""
    text = text_of(value)
    BUDGET.get().characters(len(text))
    return text


@pass_context
def _charge(_context: Context, text: int) -> bool:
    BUDGET.get().characters(text)
    return True


@pass_context
def _made(_context: Context, value: Any) -> Any:
    return BUDGET.get().made(value)


@pass_context
def _concat(_context: Context, values: list[Any]) -> str:
    texts = [text_of(value) for value in values]
    room(sum(map(len, texts)))
    return BUDGET.get().made("".join(texts))


def _counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a filter: what it is given and what it makes are counted."""
    first = NEEDS.get(getattr(function, PASS, None))

    @pass_context
    def run(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        budget = BUDGET.get()
        budget.step()
        weigh((args, kwargs))
        if name in SEQUENCE_FILTERS and isinstance(value, str) and len(value) > limit("items"):
            raise exceeded("items")
        value = budget.counted(cast(Iterator[Any], value)) if isinstance(value, Iterator) else value
        given = () if first is None else (first(context),)
        return budget.made(function(*given, value, *args, **kwargs))

    return run
