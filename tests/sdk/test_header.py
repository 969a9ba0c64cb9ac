"""The header compiles without a warning in every language, on every target, that it promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.guest_compiler import BARE32, BARE64, compile_guest

EVERYTHING = ("-pedantic", "-Wconversion", "-Wshadow", "-Wsign-compare", "-Wundef", "-Wcomma", "-O0")


@pytest.mark.parametrize("target", [BARE32, BARE64])
@pytest.mark.parametrize(
    ("language", "standard"),
    [("cc", "c99"), ("cc", "c11"), ("cc", "c23"), ("c++", "c++11"), ("c++", "c++20")],
)
def test_compiles_without_warnings(tmp_path: Path, language: str, standard: str, target: str) -> None:
    source = tmp_path / ("guest.c" if language == "cc" else "guest.cpp")
    source.write_text('#include "nocopy.h"\n#include "nocopy.h"\n')
    module = compile_guest(
        [source],
        tmp_path / "guest.wasm",
        target=target,
        language=language,
        flags=(*EVERYTHING, f"-std={standard}"),
    )
    assert module.read_bytes().startswith(b"\0asm")
