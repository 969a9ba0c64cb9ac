"""Fill docs/performance.md with the tables of committed results.

python tools/performance_docs.py           write it
python tools/performance_docs.py --check   fail if what is committed differs

A marker names a result: what stands between it and the next `<!-- end -->` is made from that file.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "bench")]

from peers import report  # noqa: E402

PAGE = ROOT / "docs" / "performance.md"
RESULT = re.compile(r"<!-- result: (?P<file>\S+) -->\n.*?<!-- end -->\n", re.DOTALL)
TABLES = {"cuda_peers": report.markdown, "cuda_fidelity": report.fidelity}


def filled(found: re.Match[str]) -> str:
    """A marker with its table."""
    result = json.loads((ROOT / found["file"]).read_text())
    return f"<!-- result: {found['file']} -->\n\n{TABLES[result['name']](result)}\n\n<!-- end -->\n"


def main() -> int:
    written = PAGE.read_text()
    page = RESULT.sub(filled, written)
    if sys.argv[1:] != ["--check"]:
        PAGE.write_text(page)
        return 0
    if written != page:
        print(f"{PAGE} differs from the committed results; run tools/performance_docs.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
