"""Rewriting a template's syntax tree so that everything that can repeat or grow is counted.

Loops, macros and blocks count their turns and their fixed text; lists, dicts, tuples, slices and joined
text (`a ~ b`) count what they make. Operators, calls and filters are counted by the environment.
"""

from __future__ import annotations

from typing import Any, Final

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from nocopy.errors import TemplateError

CHARGE: Final = "nocopy charge"
MADE: Final = "nocopy made"
CONCAT: Final = "nocopy concat"
"""Filters that only the rewriting can name: no template can write a name with a space."""

REFUSED: Final[dict[type[nodes.Node], str]] = {
    nodes.Include: "include",
    nodes.Import: "import",
    nodes.FromImport: "from … import",
    nodes.Extends: "extends",
    nodes.ScopedEvalContextModifier: "autoescape",
}
"""Statements that reach outside the template, or change what text means in the middle of it."""


def meter(tree: nodes.Template) -> nodes.Template:
    """Rewrite a template in place and return it.

    Raises:
        TemplateError: it uses a statement of `REFUSED`.
    """
    for kind, name in REFUSED.items():
        if tree.find(kind) is not None:
            raise TemplateError(f"the chat template uses '{name}', which is not available; write it without")
    return _Meter().visit(tree)


def _filter(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _charge(body: list[nodes.Node], lineno: int) -> nodes.Filter:
    """Count one turn over a body and the fixed text in it; true."""
    texts = (data for node in body for data in node.find_all(nodes.TemplateData))
    size = sum(len(data.data) for data in texts)
    return _filter(nodes.Const(size, lineno=lineno), CHARGE)


def _charged(body: list[nodes.Node], lineno: int) -> list[nodes.Node]:
    return [nodes.ExprStmt(_charge(body, lineno), lineno=lineno), *body]


class _Meter(NodeTransformer):
    def visit_For(self, node: nodes.For, *_: Any) -> nodes.Node:
        self.generic_visit(node)
        node.body = _charged(node.body, node.lineno)
        if node.test is not None:
            node.test = nodes.And(_charge([], node.lineno), node.test, lineno=node.lineno)
        return node

    def _charge_body(self, node: Any, *_: Any) -> nodes.Node:
        self.generic_visit(node)
        node.body = _charged(node.body, node.lineno)
        return node

    visit_Macro = visit_CallBlock = visit_Block = _charge_body

    def _count_value(self, node: Any, *_: Any) -> nodes.Node:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") == "store" else _filter(node, MADE)

    visit_List = visit_Tuple = visit_Dict = _count_value

    def visit_Getitem(self, node: nodes.Getitem, *_: Any) -> nodes.Node:
        self.generic_visit(node)
        return _filter(node, MADE) if isinstance(node.arg, nodes.Slice) else node

    def visit_Concat(self, node: nodes.Concat, *_: Any) -> nodes.Node:
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), CONCAT)
