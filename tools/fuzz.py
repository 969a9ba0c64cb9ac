"""Play hostile tapes on every player of this machine, each in a process of its own.

python tools/fuzz.py --minutes 10                  all devices, at the same time
python tools/fuzz.py --seconds 30 --device cpu     one of them
python tools/fuzz.py --minutes 10 --json FILE      write the outcome down

The corpus grows under build/fuzz. A process that dies, hangs or finds a byte changed that no output owns is a
failure; the tape that did it is kept beside the corpus.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from nocopy.device.discovery import MODULES, probe  # noqa: E402
from tests.fuzz.worker import LAST, PROGRESS  # noqa: E402

GRACE = 120
"""Seconds that a process may take beyond its time: to start, and to end the tape that it plays."""


@dataclass
class Outcome:
    """What one process did: tapes tried, those accepted, those that a guest submitted.

    `failure` is empty if it ended by itself after its time.
    """

    device: str
    engine: str
    seconds: float
    executions: int
    accepted: int
    from_guest: int
    failure: str

    @property
    def share(self) -> float:
        """Accepted tapes among those tried."""
        return self.accepted / max(1, self.executions)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=1.0)
    length.add_argument("--seconds", type=float)
    parser.add_argument(
        "--device", action="append", choices=list(MODULES), help="again for several; default: all"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", type=Path, default=ROOT / "build/fuzz")
    parser.add_argument("--json", type=Path, help="write the outcome to this file")
    return parser.parse_args()


def present(wanted: list[str] | None) -> list[str]:
    """The devices to fuzz; says why one is left out."""
    found: list[str] = []
    for name in wanted or MODULES:
        status = probe(name)
        if status.available:
            found.append(name)
        else:
            print(f"{name}: left out, {status.reason}", file=sys.stderr)
    return found


def start(device: str, seconds: float, seed: int, corpus: Path) -> tuple[subprocess.Popen[bytes], Path]:
    folder = corpus / device
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PROGRESS).unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.fuzz.worker", "--device", device, "--seconds", str(seconds)]
    command += ["--seed", str(seed), "--folder", str(folder)]
    path = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, stdout=log, stderr=subprocess.STDOUT
        )
    return process, folder


def finish(device: str, process: subprocess.Popen[bytes], folder: Path, deadline: float) -> Outcome:
    """Wait for a process and say what became of it."""
    try:
        status = process.wait(max(1.0, deadline - time.monotonic()))
        failure = "" if status == 0 else f"ended with status {status}"
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        failure = "did not end"
    progress = folder / PROGRESS
    counts: dict[str, Any] = json.loads(progress.read_text()) if progress.exists() else {}
    if failure:
        failure += f"; see {folder / 'log.txt'}"
        if (folder / LAST).exists():
            failure += f"; the tape is {keep(folder)}"
    elif not counts:
        failure = f"ran nothing; see {folder / 'log.txt'}"
    return Outcome(
        device,
        counts.get("engine", ""),
        counts.get("seconds", 0.0),
        counts.get("executions", 0),
        counts.get("accepted", 0),
        counts.get("from_guest", 0),
        failure,
    )


def keep(folder: Path) -> Path:
    """Save the last tape played under a name of its own."""
    raw = (folder / LAST).read_bytes()
    tape = raw[4 : 4 + int.from_bytes(raw[:4], "little")]
    kept = folder / f"failure-{int(time.time())}.tape"
    kept.write_bytes(tape)
    return kept


def machine() -> dict[str, Any]:
    return {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def main() -> int:
    args = parse()
    seconds = args.seconds if args.seconds is not None else args.minutes * 60
    running = [(name, *start(name, seconds, args.seed, args.corpus)) for name in present(args.device)]
    if not running:
        print("no device was left to fuzz", file=sys.stderr)
        return 1
    deadline = time.monotonic() + seconds + GRACE
    outcomes = [finish(name, process, folder, deadline) for name, process, folder in running]
    for o in outcomes:
        print(
            f"{o.device:10} {o.engine:8} {o.seconds:7.0f} s  {o.executions:9} tapes"
            f"  {o.share:6.1%} accepted"
            f"  {o.from_guest:9} from a guest  {o.failure or 'no failure'}"
        )
        if o.engine == "random":
            print(f"{'':10} atheris is not there (it has no wheel for this Python), so not coverage-guided")
    if args.json:
        rows = [
            asdict(o) | {"accepted_share": round(o.share, 3), "crashes": int(bool(o.failure))}
            for o in outcomes
        ]
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(
            json.dumps({"name": "fuzz", "machine": machine(), "rows": rows}, indent=2) + "\n"
        )
    return 1 if any(o.failure for o in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
