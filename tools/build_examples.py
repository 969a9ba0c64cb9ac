"""Compile the guests that ship with the package: those of `examples/`.

python tools/build_examples.py           write src/nocopy/examples/*.wasm
python tools/build_examples.py --check   fail if what is committed differs from what the sources give

The compiler is pinned and its output depends on neither machine nor path: the check is byte by byte.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from nocopy.examples import EXAMPLES  # noqa: E402
from tools.guest_compiler import compile_guest  # noqa: E402

# The stack lies below the data, so that running out of it traps instead of writing over data.
FLAGS = ("-std=gnu23", "-msimd128", "-Wl,-z,stack-size=65536")


def build(name: str, out: Path) -> Path:
    """Compile one example."""
    return compile_guest([ROOT / "examples" / name / f"{name}.c"], out, flags=FLAGS)


def main() -> int:
    check = "--check" in sys.argv[1:]
    stale = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in EXAMPLES:
            target = ROOT / "src/nocopy/examples" / f"{name}.wasm"
            new = build(name, Path(folder) / target.name).read_bytes()
            if target.exists() and target.read_bytes() == new:
                continue
            stale += 1
            if check:
                print(f"{target.relative_to(ROOT)} is out of date; run `make examples`", file=sys.stderr)
            else:
                target.write_bytes(new)
                print(f"wrote {target.relative_to(ROOT)}, {len(new)} bytes")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
