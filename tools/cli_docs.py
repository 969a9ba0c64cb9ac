"""Fill docs/cli.md with what `--help` prints.

python tools/cli_docs.py           write it
python tools/cli_docs.py --check   fail if what is committed differs
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from nocopy.cli.status import MEANING  # noqa: E402

PAGE = ROOT / "docs" / "cli.md"
HELP = re.compile(r"<!-- help:(.*?)-->\n(\n```text\n.*?```\n)?", re.DOTALL)
STATUSES = re.compile(r"<!-- statuses -->\n(\|.*?\n)*")
STATUS_HEAD = "| status | meaning |\n| --- | --- |\n"


def help_page(verb: str) -> str:
    """What `nocopy VERB --help` prints on a screen of 96 columns."""
    kept = {k: v for k, v in os.environ.items() if k != "FORCE_COLOR"}
    command = [sys.executable, "-m", "nocopy.cli", *verb.split(), "--help"]
    path = {"PYTHONPATH": str(ROOT / "src"), "COLUMNS": "96", "NO_COLOR": "1"}
    said = subprocess.run(command, env=kept | path, capture_output=True, text=True, check=True).stdout
    return "\n".join(line.rstrip() for line in said.strip().splitlines())


def fill(page: str) -> str:
    """The page with every marker's content renewed."""
    page = HELP.sub(lambda m: f"<!-- help:{m[1]}-->\n\n```text\n{help_page(m[1])}\n```\n", page)
    rows = "".join(f"| {status.value} | {meaning} |\n" for status, meaning in MEANING.items())
    return STATUSES.sub(f"<!-- statuses -->\n{STATUS_HEAD}{rows}", page)


def main() -> int:
    written = PAGE.read_text()
    filled = fill(written)
    if sys.argv[1:] != ["--check"]:
        PAGE.write_text(filled)
        return 0
    if written != filled:
        print(f"{PAGE} differs from what --help prints; run tools/cli_docs.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
