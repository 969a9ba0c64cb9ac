"""docs/cli.md says what the command line does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from nocopy.cli.app import VERBS
from nocopy.cli.choices import DeviceName
from nocopy.cli.grants import LIMITS
from nocopy.device.discovery import MODULES

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "cli.md").read_text()


def test_the_page_has_what_help_prints() -> None:
    command = [sys.executable, str(ROOT / "tools" / "cli_docs.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_verb_has_its_section() -> None:
    for verb in VERBS:
        assert f"\n## nocopy {verb}\n" in PAGE


def test_every_limit_is_listed() -> None:
    for name in LIMITS:
        assert f"`{name}`" in PAGE


def test_the_help_of_device_names_every_device() -> None:
    (parameter,) = DeviceName.__metadata__
    for name in ("auto", *MODULES):
        assert name in parameter.help
