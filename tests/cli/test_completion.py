"""Completion scripts: each shell gets one, and it knows the verbs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from nocopy.cli.app import VERBS
from tests.cli.run_cli import nocopy_cli


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_a_script_knows_the_verbs_and_their_options(shell: str) -> None:
    done = nocopy_cli("completion", shell)
    assert done.status == 0
    for word in (*VERBS, "device"):
        assert word in done.out


def test_bash_reads_its_script(tmp_path: Path) -> None:
    script = tmp_path / "nocopy.bash"
    script.write_text(nocopy_cli("completion", "bash").out)
    bash = shutil.which("bash")
    assert bash is not None
    ask = f"source {script}; COMP_WORDS=(nocopy do); COMP_CWORD=1; _nocopy; echo ${{COMPREPLY[@]}}"
    done = subprocess.run([bash, "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["doctor"]


def test_install_writes_where_the_shell_looks(tmp_path: Path) -> None:
    done = nocopy_cli("completion", "fish", "--install", HOME=str(tmp_path))
    assert done.status == 0
    written = tmp_path / ".config" / "fish" / "completions" / "nocopy.fish"
    assert str(written) in done.err.replace("\n", "")
    assert "roundtrip" not in done.out
    assert written.read_text().startswith("#")


def test_an_unknown_shell_around_us_is_said(tmp_path: Path) -> None:
    done = nocopy_cli("completion", SHELL="/bin/unheard-of", PATH=str(tmp_path))
    assert done.status in (0, 2)
    assert "Traceback" not in done.err
