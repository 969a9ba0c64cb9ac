"""The program in the guide compiles with the guide's command and prints what the guide says."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from nocopy.interfaces.host import DeviceGuest
from nocopy.models.find import EMBEDDED
from tests.models.tiny import write_tiny
from tools.guest_compiler import ROOT

GUIDE = (ROOT / "sdk" / "c" / "README.md").read_text()


def test_the_guides_first_program(tmp_path: Path) -> None:
    program = re.search(r"```c\n(.*?)```", GUIDE, re.DOTALL)
    command = re.search(r"    python (-m ziglang cc --target=wasm32-wasi .*)", GUIDE)
    output = re.search(r"    nocopy run guest\.wasm\n\n    (.*)", GUIDE)
    assert program
    assert command
    assert output
    (tmp_path / "guest.c").write_text(program[1])
    arguments = [a.replace("sdk/c", str(ROOT / "sdk" / "c")) for a in shlex.split(command[1])]
    subprocess.run([sys.executable, *arguments], cwd=tmp_path, check=True, timeout=200)
    with DeviceGuest(tmp_path / "guest.wasm", device="reference", stdout="capture") as guest:
        guest.run()
        assert guest.stdout.decode().strip() == output[1]


def test_the_guides_memory64_command(tmp_path: Path) -> None:
    command = re.search(r"    python (-m ziglang cc --target=wasm64-freestanding .*)", GUIDE)
    assert command
    (tmp_path / "guest.c").write_text(
        '#include "nocopy.h"\nfloat x = 2;\nfloat *run(void) { nocopy_record r; nocopy_tape t = '
        "nocopy_tape_over(&r, 1); nocopy_fill(&t, nocopy_0d(&x, NOCOPY_F32), 7); "
        "return nocopy_submit_tape(&t) ? 0 : &x; }\n"
    )
    arguments = [a.replace("sdk/c", str(ROOT / "sdk" / "c")) for a in shlex.split(command[1])]
    subprocess.run([sys.executable, *arguments], cwd=tmp_path, check=True, timeout=200)
    with DeviceGuest(tmp_path / "guest.wasm", device="reference") as guest:
        assert guest.memory.view(1, "f32", guest.call("run")).numpy()[0] == 7


def test_the_guides_program_for_wasi_nn(tmp_path: Path, playing: str) -> None:
    program = re.search(
        r"```c\n(#include <stdio\.h>\n#include <string\.h>\n#include \"wasi_nn\.h\"\n.*?)```",
        GUIDE,
        re.DOTALL,
    )
    command = re.search(r"    python (-m ziglang cc .* complete\.c .*)", GUIDE)
    assert program
    assert command
    (tmp_path / "complete.c").write_text(program[1])
    arguments = [a.replace("sdk/c", str(ROOT / "sdk" / "c")) for a in shlex.split(command[1])]
    subprocess.run([sys.executable, *arguments], cwd=tmp_path, check=True, timeout=200)
    models = {"default": EMBEDDED}
    with DeviceGuest(tmp_path / "complete.wasm", device=playing, nn_models=models, stdout="capture") as guest:
        guest.run()
        said = guest.stdout.decode()
    assert said.startswith("def add(a, b):\n")
    assert len(said) > 30


def test_the_guides_program_with_a_model(tmp_path: Path) -> None:
    program = re.search(
        r"```c\n(#include <stdio\.h>\n#include \"nocopy_model\.h\"\n.*?)```", GUIDE, re.DOTALL
    )
    command = re.search(r"    python (-m ziglang cc .* weather\.c .*)", GUIDE)
    assert program
    assert command
    (tmp_path / "weather.c").write_text(program[1])
    arguments = [a.replace("sdk/c", str(ROOT / "sdk" / "c")) for a in shlex.split(command[1])]
    subprocess.run([sys.executable, *arguments], cwd=tmp_path, check=True, timeout=200)
    models = {"default": write_tiny(tmp_path / "tiny.gguf")}
    module = tmp_path / "weather.wasm"
    with DeviceGuest(module, device="reference", models=models, stdout="capture") as guest:
        guest.run()
        assert guest.stdout in (b"yes\n", b"no\n")
