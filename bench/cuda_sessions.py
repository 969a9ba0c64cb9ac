"""Does anything stay behind? Opens and closes sessions and guests on a CUDA device, and counts what is there.

    python bench/cuda_sessions.py --sessions 10000 --seconds 60 --json sessions.json

Every session is opened and closed; one of `--every` reads tokens, is flushed, truncated, read on and forked;
one of ten times as many is refused for want of memory; as often a guest plays a tape with scratch on the same
device. After each tenth, free device memory and resident host memory are noted; with the emulated driver of
the tests also what the driver has: registrations, allocations, modules, graphs.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import time
from pathlib import Path
from typing import Any

from cuda_decode import open_gpu

import nocopy
from nocopy.device.cuda import CudaDevice
from nocopy.errors import DeviceError
from nocopy.memory import DType, LinearMemory
from nocopy.session.language import LanguageModel
from nocopy.session.own import OwnSession
from nocopy.tape import Space, TapeBuilder, Tensor

LIVE = "contexts", "modules", "graphs", "registrations", "allocations", "allocated_bytes"
GUEST = '(module (memory (export "memory") 2))'


def one_session(model: LanguageModel, *, reads: bool) -> None:
    with model.session() as session:
        if not reads:
            return
        session.append([1, 2, 3])
        session.flush()
        session.truncate(1)
        session.append([4, 5, 6])
        size = session.memory.size
        memory = LinearMemory(size, reserve=size, guard=0)
        pages = model.device.share(memory.address, size)
        fork = session.fork(memory, pages)
        fork.append([7])
        fork.close()
        pages.close()
        memory.close()


def one_refusal(model: LanguageModel, device: CudaDevice) -> None:
    driver, allocate = device.driver, device.driver.allocate
    driver.allocate = lambda nbytes: allocate(nbytes + (1 << 60))  # type: ignore[method-assign]
    try:
        OwnSession(model.engine, context=model.context, kv=DType.F16)
    except DeviceError:
        pass
    else:
        raise SystemExit("a session was not refused that has no room")
    finally:
        driver.allocate = allocate  # type: ignore[method-assign]


def one_guest(device: CudaDevice) -> None:
    with nocopy.Guest(GUEST, device=device) as guest:
        x = guest.memory.view(1024, "f32", 65536)
        y = Tensor(Space.SCRATCH, 0, (1024,), DType.F32)
        tape = TapeBuilder()
        tape.binary("add", y, x, x)
        tape.copy(x, y)
        guest.play(tape)
        guest.memory.grow(3 * 65536)
        guest.play(tape)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def count(device: CudaDevice) -> dict[str, int]:
    gc.collect()
    found = {"resident_bytes": resident_bytes()}
    with device.driver.current():
        found["free_bytes"] = device.driver.free_bytes()
        live = getattr(ctypes.CDLL("libcuda.so.1"), "nocopy_live", None)
        if live is not None:
            values = (ctypes.c_long * len(LIVE))()
            live(values)
            found |= dict(zip(LIVE, values, strict=True))
    return found


def measure(sessions: int, seconds: float, every: int, model_file: str | None) -> dict[str, Any]:
    device = open_gpu()
    with LanguageModel(model_file, device=device, context=128) as model:
        for _ in range(3):
            one_session(model, reads=True)
        one_refusal(model, device)
        one_guest(device)
        rows = [{"sessions": 0, **count(device)}]
        end, step = time.monotonic() + seconds, max(1, sessions // 10)
        for number in range(1, sessions + 1):
            one_session(model, reads=number % every == 0)
            if number % (10 * every) == 0:
                one_refusal(model, device)
                one_guest(device)
            late = time.monotonic() > end
            if number % step == 0 or late:
                rows.append({"sessions": number, **count(device)})
            if late:
                break
    product = device.info.product
    device.close()
    return {"product": product, "read_every": every, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=60.0, help="end earlier, after so many")
    parser.add_argument("--every", type=int, default=5, help="one of so many sessions reads tokens")
    parser.add_argument("--model", help="a model file; the default model unless given")
    parser.add_argument("--json", type=Path, help="write the counts here")
    given = parser.parse_args()
    found = measure(given.sessions, given.seconds, given.every, given.model)
    for row in found["rows"]:
        print("  ".join(f"{name} {value:,}" for name, value in row.items()))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
