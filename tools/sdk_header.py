"""Write sdk/c/nocopy.h: tools/nocopy.h.in with every table and one builder for each op filled in."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nocopy import errors
from nocopy.device.protocol import Mode
from nocopy.interfaces.imports import (
    CLONE_INFO,
    CLONE_INFO_DOC,
    DEVICE_INFO,
    DEVICE_INFO_DOC,
    IMPORTS,
    INTERFACE_VERSION,
    LOG_LEVELS,
)
from nocopy.interfaces.model_imports import (
    BIAS,
    BIAS_DOC,
    GENERATION,
    GENERATION_DOC,
    GENERATION_VERSION,
    MODEL_IMPORTS,
    NUMBERS,
    generation_defaults,
)
from nocopy.interfaces.signature import Import
from nocopy.memory.dtype import DType
from nocopy.tape.ops import GRID, OPS, Op, Operand

TEMPLATE = Path(__file__).with_name("nocopy.h.in")

AXES = {
    "matmul": {"out": (2, 4), "a": (2, 4), "b": (2, 4)},
    "gather": {"table": (2, 2), "indices": (1, 1)},
    "topk": {"values": (1, 4), "x": (1, 4)},
    "conv2d": {"out": (4, 4), "x": (4, 4), "weight": (4, 4)},
    "resize": {"out": (4, 4), "x": (4, 4)},
    "rope": {"x": (3, 3), "frequencies": (1, 1)},
    "scatter": {"out": (2, 2), "x": (2, 2), "indices": (1, 1)},
    "attention": {"q": (3, 3), "k": (3, 3)},
    "penalize": {"x": (2, 2), "recent": (2, 2), "options": (2, 2)},
    "sample": {"x": (2, 2), "options": (2, 2), "state": (2, 2)},
} | {name: {"x": (1, 4)} for name in ("reduce", "softmax", "rmsnorm", "layernorm", "argmax")}
"""Least and most axes of tensors that dims are taken from; elsewhere missing axes count as size 1."""

NO_BROADCAST = {"matmul": ("m", "n", "k")}
"""Dims along which a size of 1 does not repeat."""


def fill_template(
    notice: str, constants: list[tuple[str, int, str]], structs: list[str], layouts: list[str]
) -> str:
    """Return the header's text.

    Args:
        notice: where it comes from.
        constants: name, number and comment of everything that records are made of.
        structs: the lines that declare `nocopy_operand` and `nocopy_record`.
        layouts: a line for each op: its operands, dims and params.
    """
    parts = {
        "NOTICE": notice,
        "CONSTANTS": enum([*constants, *host_constants()]),
        "STRUCTS": re.sub(r"//(.*)", r"/*\1 */", "\n".join(structs)),
        "DEVICE_INFO": struct("nocopy_device_info", DEVICE_INFO, DEVICE_INFO_DOC),
        "CLONE_INFO": struct("nocopy_clone_info", CLONE_INFO, CLONE_INFO_DOC),
        "CLONE_INFO_BYTES": str(CLONE_INFO.itemsize),
        "DEVICE_INFO_BYTES": str(DEVICE_INFO.itemsize),
        "GENERATION": "\n\n".join(
            [struct("nocopy_bias", BIAS, BIAS_DOC), struct("nocopy_generation", GENERATION, GENERATION_DOC)]
        ),
        "GENERATION_BYTES": str(GENERATION.itemsize),
        "GENERATION_DEFAULTS": "\n".join(
            f"    g.{name} = {number(value, GENERATION[name])};"
            for name, value in generation_defaults().items()
        ),
        "LAYOUTS": "\n".join(
            textwrap.fill(line, 108, initial_indent=" *   ", subsequent_indent=" *     ") for line in layouts
        ),
        "IMPORTS": "\n".join(declaration(i) for i in IMPORTS if i not in MODEL_IMPORTS),
        "MODEL_IMPORTS": "\n".join(map(declaration, MODEL_IMPORTS)),
        "ITEMSIZES": "\n".join(f"    case NOCOPY_{d.name}: return {d.itemsize};" for d in DType if d),
        "BUILDERS": "\n".join(builder(op) for op in OPS),
    }
    text = TEMPLATE.read_text()
    for name, part in parts.items():
        text = text.replace(f"@{name}@", part)
    return text


def host_constants() -> Iterator[tuple[str, int, str]]:
    """Numbers that records do not need: error codes, log levels, modes."""
    yield "NOCOPY_INTERFACE_VERSION", INTERFACE_VERSION, ""
    for level, name in enumerate(LOG_LEVELS):
        yield f"NOCOPY_LOG_{name.upper()}", level, ""
    for number, mode in enumerate(Mode):
        yield f"NOCOPY_MODE_{mode.name}", number, ""
    yield "NOCOPY_GENERATION_VERSION", GENERATION_VERSION, ""
    for numbers, (word, meanings) in NUMBERS.items():
        for member, meaning in zip(numbers, meanings, strict=True):
            yield f"NOCOPY_{word}_{member.name}", member.value, meaning
    for error in error_classes(errors.Error):
        yield (
            f"NOCOPY_ERROR{c_name(error)}",
            error.code,
            re.split(r"[.;]", error.__doc__ or "")[0],
        )


def error_classes(root: type[errors.Error]) -> list[type[errors.Error]]:
    """`root` and everything below it, by falling code."""
    found = [root]
    for sub in root.__subclasses__():
        found += error_classes(sub)
    return sorted(found, key=lambda e: -e.code)


def c_name(error: type[errors.Error]) -> str:
    """MemoryLimitError -> _MEMORY_LIMIT; Error -> ''."""
    stem = error.__name__.removesuffix("Error")
    return "".join(f"_{c}" if c.isupper() else c.upper() for c in stem)


def enum(constants: list[tuple[str, int, str]]) -> str:
    """An anonymous enum with one constant a line."""
    lines = [
        f"    {name} = {value}," + (f" /* {comment} */" if comment else "")
        for name, value, comment in constants
    ]
    return "\n".join(["enum {", *lines, "};"])


C_TYPES = {"<u4": "uint32_t", "<i4": "int32_t", "<u8": "uint64_t", "<f4": "float"}


def struct(name: str, dtype: np.dtype[np.void], docs: dict[str, str]) -> str:
    """A C struct with the bytes of a dtype."""
    lines = [f"typedef struct {name} {{"]
    for field in dtype.names or ():
        kind: np.dtype[np.void] = dtype[field]
        declared = f"char {field}[{kind.itemsize}]" if kind.kind == "S" else f"{C_TYPES[kind.str]} {field}"
        lines.append(f"    {declared}; /* {docs[field]} */")
    return "\n".join([*lines, f"}} {name};"])


def number(value: float, dtype: np.dtype[np.void]) -> str:
    """A C literal of a field's type."""
    return f"{float(value)}f" if dtype.kind == "f" else str(int(value))


def declaration(function: Import) -> str:
    """The prototype of one import, with its documentation."""
    parameters = [f"{p.c_type}{'' if p.c_type.endswith('*') else ' '}{p.name}" for p in function.params]
    start = f"NOCOPY_IMPORT_({function.name}) int32_t nocopy_{function.name}("
    return f"{comment(function.doc)}\n{prototype(start, parameters or ['void'], ');')}\n"


def prototype(start: str, parameters: list[str], end: str) -> str:
    """`start`, the parameters and `end` in lines of at most 110 columns."""
    lines, indent = [start], " " * len(start)
    for i, parameter in enumerate(parameters):
        piece = parameter + (end if i == len(parameters) - 1 else ",")
        if len(lines[-1]) + len(piece) > 109:
            lines.append(indent)
        lines[-1] += piece if lines[-1].endswith(("(", indent)) else f" {piece}"
    return "\n".join(lines)


def comment(text: str) -> str:
    """A block comment."""
    assert "*/" not in text
    return "/* " + text.replace("\n", "\n * ") + " */"


def builder(op: Op) -> str:
    """The C function that appends one record of `op`: the same argument order as `TapeBuilder`."""
    parameters = ["nocopy_tape *tape"]
    parameters += ["uint32_t function"] if op.functions else []
    parameters += [f"nocopy_tensor {o.name}" for o in op.operands]
    parameters += [f"{'float' if p.kind == 'f32' else 'uint32_t'} {p.name}" for p in op.params]
    head = prototype(f"static inline int32_t nocopy_{op.name}(", parameters, ") {")
    function = "function" if op.functions else "0"
    body = [f"nocopy_record *r = nocopy_begin_(tape, NOCOPY_OP_{op.name.upper()}, {function});"]
    body += ["if (!r) return tape->error;", *checks_before(op), *dims(op), *checks_after(op)]
    for slot, operand in enumerate(op.operands):
        body.append(bind(op, slot, operand))
    for i, param in enumerate(op.params):
        value = f"nocopy_bits_({param.name})" if param.kind == "f32" else param.name
        body.append(f"r->params[{i}] = {value};")
    body.append(f"return nocopy_end_(tape, r, {text(op, 'a size is over 2^31 - 1')});")
    return "\n".join([documentation(op), head, *(f"    {line}" for line in body), "}", ""])


def documentation(op: Op) -> str:
    """The formula, the dtypes of every operand and what is optional."""
    by_dtypes: dict[str, list[str]] = {}
    for o in op.operands:
        dtypes = ", ".join(d.name.lower() for d in sorted(o.dtypes))
        by_dtypes.setdefault(dtypes, []).append(o.name + (" (or nocopy_none())" if o.optional else ""))
    lines = [f"{op.formula}."]
    lines += [f"{', '.join(names)}: {dtypes}." for dtypes, names in by_dtypes.items()]
    if op.functions:
        lines.append(f"function: one of NOCOPY_{op.name.upper()}_*.")
    if op.elementwise:
        lines.append("out may be exactly the tensor that an input is.")
    return comment("\n".join(line for text in lines for line in textwrap.wrap(text, 108)))


def source(op: Op, dim: str) -> Operand:
    """The operand that a dim's size is taken from; the others broadcast to it.

    Element-wise outputs and the batch of a product have the full shape; otherwise an input has it, and what
    no input has (an output's height) comes from the output.
    """
    from_output = op.dims == GRID or (op.name == "matmul" and dim in ("b0", "b1"))
    having = [o for o in op.operands if dim in o.axes]
    return next((o for o in having if o.out == from_output), having[0])


def size(operand: Operand, dim: str) -> str:
    """C for the size of the axis of an operand that `dim` names."""
    return f"nocopy_size_(&{operand.name}, {len(operand.axes) - operand.axes.index(dim)})"


def text(op: Op, what: str) -> str:
    """A C string literal: the op and what is wrong."""
    return f'"{op.name}: {what}"'


def checks_before(op: Op) -> Iterator[str]:
    """Refuse an unknown function and tensors with too few axes."""
    if op.functions:
        yield (
            f"if (function >= {len(op.functions)}) return nocopy_refuse_(tape, NOCOPY_ERROR_USAGE,"
            f" {text(op, 'unknown function')});"
        )
    for name, (least, most) in AXES.get(op.name, {}).items():
        needed = f"{least}" if least == most else f"{least} to {most}"
        what = text(op, f"{name} needs {needed} {'axis' if most == 1 else 'axes'}")
        yield f"nocopy_between_(tape, {name}.axes, {least}, {most}, {what});"


def dims(op: Op) -> Iterator[str]:
    """Set every dim from the tensor that has it."""
    for i, dim in enumerate(op.dims):
        yield f"r->dims[{i}] = {size(source(op, dim), dim)};"


def checks_after(op: Op) -> Iterator[str]:
    """Refuse sizes of 1 where nothing may repeat, and parameters outside their range."""
    for dim in NO_BROADCAST.get(op.name, ()):
        for o in op.operands:
            if dim in o.axes and o is not source(op, dim):
                what = text(op, f"{o.name} has another {dim} than {source(op, dim).name}")
                yield f"nocopy_equal_(tape, {size(o, dim)}, r->dims[{op.dims.index(dim)}], {what});"

    for p in op.params:
        if p.kind == "u32":
            what = text(op, f"{p.name} lies outside {p.low} to {p.high}")
            yield f"nocopy_between_(tape, {p.name}, {p.low}, {p.high}, {what});"


def bind(op: Op, slot: int, operand: Operand) -> str:
    """Fill an operand."""
    indices = [op.dims.index(a) for a in operand.axes]
    indices += [0] * (4 - len(indices))
    what = text(op, f"{operand.name} does not fit [{', '.join(operand.axes)}]")
    listed = ", ".join(map(str, indices))
    shape = f"{int(not operand.out)}, {len(operand.axes)}, {listed}"
    return f"nocopy_bind_(tape, r, {slot}, &{operand.name}, {what}, {shape});"
