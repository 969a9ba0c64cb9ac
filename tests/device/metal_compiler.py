"""Checks the generated Metal source and compiles it for the CPU, so that it can be tested without a Mac."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.device.compiled import FIBERS, NO_FORTIFICATION, shared_library

HERE = Path(__file__).parent / "emulated_metal"
FLAGS = ["-std=c++14", "-O1", NO_FORTIFICATION, "-shared", "-fPIC", "-ffp-contract=off",
         "-fno-strict-aliasing", "-fwrapv", "-Wno-unknown-attributes", "-Wno-attributes",
         "-Wno-missing-braces"]  # fmt: skip
KERNEL = re.compile(r"\[\[kernel\]\] void (\w+)\(([^{]*)\)\n\{")
PARAMETER = re.compile(r"(.+?) (\w+) \[\[(.+)\]\]")
BUILTINS = {"thread_position_in_threadgroup": "uint3", "threadgroup_position_in_grid": "uint3"}
FORBIDDEN = re.compile(
    r"\b(BFloat16|bfloat|packed_\w+|simd_\w+|half\d?|double|float64_t|u?int\d+_t|asm|atomic_\w+|mem_device"
    r"|function_constant)\b"
)
LITERAL = re.compile(r"\b\d+\.\d+(?:e[+-]?\d+)?\b(?!f)")
"""A floating-point literal without suffix: f32 in Metal, f64 in C++."""


class MetalSourceError(Exception):
    """Metal would not take this source."""


def parameters(source: str) -> tuple[str, list[tuple[str, str]]]:
    """The kernel's name, and type and attribute of each of its parameters."""
    found = KERNEL.findall(source)
    if len(found) != 1:
        raise MetalSourceError(f"{len(found)} kernels; one is wanted")
    name, text = found[0]
    items: list[tuple[str, str]] = []
    for item in text.split(", "):
        match = PARAMETER.fullmatch(item)
        if match is None:
            raise MetalSourceError(f"parameter {item!r} has no attribute")
        items.append((match[1], match[3]))
    return name, items


def check_source(source: str) -> str:
    """Textual rules that a C++ compiler would not enforce. Returns the kernel's name."""
    if "using namespace metal;" not in source:
        raise MetalSourceError("no `using namespace metal;`")
    found = FORBIDDEN.search(source)
    if found:
        raise MetalSourceError(f"`{found[0]}` is no part of what the kernels may use")
    name, items = parameters(source)
    bound = [kind for kind, attribute in items if attribute == "buffer(0)"]
    if len(bound) != 1 or not bound[0].endswith("constant*"):
        raise MetalSourceError(f"{name}: buffer 0 must be the argument block; found {items}")
    for kind, attribute in items:
        if attribute != "buffer(0)" and BUILTINS.get(attribute) != kind:
            raise MetalSourceError(f"{name}: parameter {kind} [[{attribute}]] is not expected")
    return name


def compile_for_cpu(source: str) -> ctypes.CDLL:
    """The kernel as a library with `run`; its constants are variables, so one build serves all of them.

    Raises:
        MetalSourceError: the source breaks a rule, or does not compile.
    """
    name = check_source(source)
    values = {"thread_position_in_threadgroup": "thread_position", "threadgroup_position_in_grid": "group",
              "buffer(0)": "arguments"}  # fmt: skip
    call = ", ".join(
        f"({kind}){values[attribute]}" if "buffer" in attribute else values[attribute]
        for kind, attribute in parameters(source)[1]
    )
    text = re.sub(r"#include <metal_\w+>\n", "", source)
    text = re.sub(r"(?m)^(\s+)threadgroup (?=\w)", r"\1static ", text).replace("threadgroup*", "*")
    text = re.sub(r"\bNOCOPY_CONSTANT_(\d)", r"nocopy_constants[\1]", text)
    text = LITERAL.sub(r"\g<0>f", text)
    text = text.replace("switch(nocopy_constants", "switch((uint)nocopy_constants")
    program = f"""#include "metal.hpp"
{text}
static void *arguments;
static uint3 group;
static void run_thread(int index) {{
    uint3 thread_position = {{(uint)index, 0, 0}};
    {name}({call});
}}
extern "C" int run(void *block, uint groups, int threads) {{
    static int launches;
    arguments = block;
    launches++;
    for (uint i = 0; i < groups; i++) {{
        group = {{i, 0, 0}};
        if (!run_group(threads, launches % 3)) return 1;
    }}
    return 0;
}}
"""
    found = shutil.which("clang++") or shutil.which("g++")
    compiler = [found] if found else [sys.executable, "-m", "ziglang", "c++"]
    headers = {header.name: header.read_text() for header in (HERE / "metal.hpp", FIBERS)}
    try:
        library = shared_library(
            f"{name}.so", compiler, FLAGS, headers | {"kernel.cpp": program}, "kernel.cpp"
        )
    except subprocess.CalledProcessError as e:
        raise MetalSourceError(e.stderr) from e
    return ctypes.CDLL(str(library))
