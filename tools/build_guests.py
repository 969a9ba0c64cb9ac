"""Build the guests that `nocopy prove` and the benchmarks run.

python tools/build_guests.py           build them
python tools/build_guests.py --check   fail if what is committed differs
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from guest_compiler import BARE32, ROOT, compile_guest

FOLDER = ROOT / "src" / "nocopy" / "bench"
GUESTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "sharing.wasm": ("guest.c", ()),
    "copying.wasm": ("guest.c", ("-DCOPYING",)),
    "wasinn.wasm": ("wasinn.c", ()),
}
"""By name: the source beside it, and the compiler's flags."""


def build(folder: Path) -> None:
    """Compile every guest into `folder`."""
    for name, (source, flags) in GUESTS.items():
        compile_guest([FOLDER / source], folder / name, target=BARE32, flags=("-std=c11", "-O3", *flags))


def main() -> int:
    if sys.argv[1:] != ["--check"]:
        build(FOLDER)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        stale = [n for n in GUESTS if (Path(folder) / n).read_bytes() != (FOLDER / n).read_bytes()]
    for name in stale:
        print(
            f"{FOLDER / name} differs from what {GUESTS[name][0]} compiles to; run tools/build_guests.py",
            file=sys.stderr,
        )
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
