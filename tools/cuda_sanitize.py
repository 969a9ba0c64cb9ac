"""Every CUDA kernel under NVIDIA's compute-sanitizer: wild and misaligned accesses, races in shared memory.

    python tools/cuda_sanitize.py [--tool memcheck racecheck] [--jobs 8] [--seconds 150] [--only NAME ...]

Needs a GPU and compute-sanitizer, which the CUDA toolkit has. What runs are the conformance tests of the
device, which compare each kernel with its meaning in NumPy, sessions of the default model, which are played
with fused kernels, batches of sequences, prompts, and passes in one kernel. Each part is a process; the exit
status is 0 if all were clean.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOOLS = ("memcheck", "racecheck")
CONFORMANCE = ("elementwise", "rows", "products", "large", "language", "sample", "tapes")
PYTEST = ("-m", "pytest", "-k", "[cuda", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist")
ON_A_GPU = tuple("on_a_gpu" if part == "[cuda" else part for part in PYTEST)
PREFILL = "tests/device/test_cuda_prefill.py"
PARTS = {name: [*PYTEST, f"tests/device/test_conformance_{name}.py"] for name in CONFORMANCE}
PARTS |= {
    "generated": [*PYTEST, "tests/device/test_conformance.py"],
    "batches": [*ON_A_GPU, "tests/session/test_batch.py"],
    "prefill": [*PYTEST[:3], "kernels and (attention or layer or rows or their_way)", *PYTEST[4:], PREFILL],
    "library": [*PYTEST[:3], "library and nobody", *PYTEST[4:], PREFILL],
    "walk": [*ON_A_GPU, "tests/session/test_walk.py"],
    "sessions": ["bench/cuda_sessions.py", "--sessions", "4", "--every", "1"],
}
FOUND = 99
"""The sanitizer's exit status if it has found something."""


@dataclass(frozen=True)
class Report:
    """What came of one part under one tool. `verdict` is "clean", or why not."""

    tool: str
    part: str
    verdict: str
    seconds: float
    output: str


def check(sanitizer: str, tool: str, part: str, seconds: float) -> Report:
    # Calls that fail are ours to handle: one part asks for more memory than there is.
    command = [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND), "--launch-timeout", "60"]
    command += ["--report-api-errors", "no"] if tool == "memcheck" else []
    command += [sys.executable, *PARTS[part]]
    start = time.monotonic()
    with subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
            status = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the sanitizer, and the program under it
            output, _ = process.communicate()
            status = None
    summary = re.findall(r"=+ (?:ERROR|RACECHECK) SUMMARY: (.*)", output)
    clean = status == 0 and bool(summary) and all(re.match(r"0 (errors|hazards)", text) for text in summary)
    if clean:
        verdict = "clean"
    elif status is None:
        verdict = f"not done after {seconds:.0f} s"
    else:
        verdict = summary[-1] if summary else f"ended with status {status}"
    return Report(tool, part, verdict, time.monotonic() - start, output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tool", nargs="+", choices=TOOLS, default=TOOLS)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="these parts")
    parser.add_argument("--jobs", type=int, default=8, help="processes at a time; they share the GPU")
    parser.add_argument("--seconds", type=float, default=150.0, help="that one may take")
    parser.add_argument("--log", type=Path, help="write the output of what was not clean here")
    given = parser.parse_args()
    sanitizer = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    if sanitizer is None:
        raise SystemExit("compute-sanitizer is not there: install the CUDA toolkit, or put it on the PATH")
    with ThreadPoolExecutor(given.jobs) as pool:
        started = [
            pool.submit(check, sanitizer, tool, part, given.seconds)
            for part in given.only
            for tool in given.tool
        ]
        reports = [each.result() for each in started]
    for each in reports:
        tests = re.findall(r"(\d+) passed", each.output)
        print(
            f"{each.tool:10} {each.part:12} {each.seconds:6.1f} s  {tests[-1] if tests else '-':>5} tests "
            f" {each.verdict}"
        )
    wrong = [each for each in reports if each.verdict != "clean"]
    if given.log:
        given.log.write_text("".join(f"## {e.tool} {e.part}: {e.verdict}\n{e.output}\n" for e in wrong))
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
