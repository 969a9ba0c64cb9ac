"""Freezing and thawing a conversation of so many tokens with a model of 1.24 B parameters, f16 KV cache.

freeze        the session becomes a file on the disk    beside writing as many bytes and fsync
publish       the same                                  beside writing them as durably by hand: under another
                                                        name, fsync, rename, fsync of the folder
thaw          the file becomes a session                beside reading the tokens again (re-prefill)
thaw of new   the same, of a file that this process     beside thawing one that it has thawed before
              has not opened before
first token   thaw, then one token: a token, and the    beside one token after it: the same one of the same
              median of how much more the two took      session, which was cut back
at most       the same with the upper end of the 95 %   beside the same
              interval of that median
beyond        the same difference for a token of        beside the upper end of its 95 % interval
              `LAYERS` of the model's layers

What a token takes varies by more than a thaw does, the more so the longer the conversation. What a thaw
leaves for later is done within the first layers and with the logits: a token of few layers takes as much
more, and shows it more exactly. Where in memory keys and values lie changes a token, too: so one session is
compared with itself.

The file is written to the user's cache directory and is in the page cache when it is thawed, without
verification. Its size is what it takes on the disk. Reading the tokens again is measured up to `READ` tokens.
Beyond, the peer says so: what stands there is the time that they take at the rate of `READ` tokens, which is
less than they would take, since attention grows with the square. The keys and values of such a length are
noise: no time depends on them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

from nocopy.bench.llama import fill_with_noise, model_file, tokens
from nocopy.bench.result import Result, Row, row
from nocopy.bench.runner import Progress, silent
from nocopy.bench.timing import MOST_SAMPLES, interleaved, interval, turns
from nocopy.device.protocol import Device
from nocopy.memory.dtype import DType
from nocopy.memory.linear import LinearMemory
from nocopy.models.forward import decoder
from nocopy.models.ggml import GGMLType
from nocopy.session.engine import Engine
from nocopy.session.language import LanguageModel
from nocopy.session.own import OwnSession
from nocopy.session.pace import Make
from nocopy.session.region import Region
from nocopy.snapshot.publish import sync_folder
from nocopy.snapshot.session import freeze_session, thaw_session
from nocopy.tape import Space, Tape, Tensor

AXIS = "tokens of the conversation"
LENGTHS = (24, 256, 4096, 32768)
READ = 4096
"""Tokens up to which re-prefill is measured: a minute on two cores."""
KIND = GGMLType.Q4_0
SECONDS = 6.0
"""For writing files of one size, likewise for thawing; first tokens take up to fifty times as long."""
MOST_PAIRS = 1000
"""Tokens that are compared with first tokens."""
LAYERS = 2
"""Of a token that shows what a thaw leaves for later: milliseconds, while pages take one at most."""
SLOW_DISK = 64 << 20
"""Bytes a second."""
STEP = 16 << 20
"""Bytes of one plain write."""


def rows(device: Device, *, progress: Progress = silent) -> list[Row]:
    """Measure each of `LENGTHS`; the unit is milliseconds. The case names the tokens and the file's size."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nocopy"
    model_path = model_file(KIND)
    found: list[Row] = []
    with (
        TemporaryDirectory(prefix="bench-", dir=cache) as folder,
        LanguageModel(model_path, device=device, context=max(LENGTHS) + 64) as model,
    ):
        rate = 0.0
        for i, length in enumerate(LENGTHS):
            progress(f"{length} tokens", i / len(LENGTHS))
            with model.session(context=length + 64) as session:
                read = _read(session, length)
                rate = read / length if read else rate
                peer = "re-prefill" if read else f"re-prefill at the rate of {READ}"
                found += _of(model, session, Path(folder) / "session", peer, read or rate * length)
    return found


def lines(result: Result) -> dict[str, dict[int, float]]:
    """Milliseconds over tokens, for a picture."""
    drawn: dict[str, dict[int, float]] = {
        name: {} for name in ("thaw", "freeze", "re-prefill", "write and publish")
    }
    for found in result.rows:
        what, length = re.fullmatch(r"(.*) (\d+) tokens.*", found["case"], re.DOTALL).groups()  # pyright: ignore
        for name, value in ((what, found["value"]), (found["peer"], found["peer_value"])):
            if name in drawn:
                drawn[name][int(length)] = value
    return drawn


def _read(session: OwnSession, length: int) -> float:
    """Fill the session; return the seconds that reading the tokens took, 0 if they were not read."""
    if length <= READ:
        fed = tokens(length)
        start = perf_counter()
        session.append(fed)
        return perf_counter() - start
    fill_with_noise(session, length)
    return 0.0


def _of(model: LanguageModel, session: OwnSession, path: Path, peer: str, read: float) -> list[Row]:
    length = session.length

    def freeze() -> Callable[[], None]:
        freeze_session(session, path)
        return path.unlink

    freeze_session(session, path)
    nbytes = path.stat().st_blocks * 512
    path.unlink()
    times = interleaved(
        {
            "ours": freeze,
            "disk": lambda: _write(path, session.memory, nbytes),
            "durably": lambda: _publish(path, session.memory, nbytes),
        },
        seconds=SECONDS + nbytes / SLOW_DISK,  # a disk is uneven, and few files of 1 GiB say little
    )
    case = f"{length} tokens, {nbytes / 2**20:.1f} MiB"
    ours = 1e3 * times["ours"]
    found = [
        row(f"freeze {case}", ours, "ms", "write and fsync", 1e3 * times["disk"]),
        row(f"publish {case}", ours, "ms", "write and publish", 1e3 * times["durably"]),
    ]
    freeze_session(session, path)
    names = [path.with_name(f"{path.name}-{i}") for i in range(MOST_SAMPLES + 2)]
    for name in names:
        name.hardlink_to(path)
    unseen = iter(names)
    (token,) = tokens(1)

    def thaw() -> Callable[[], None]:
        return thaw_session(model, path, verify="off").session.close

    def thaw_new() -> Callable[[], None]:
        return thaw_session(model, next(unseen), verify="off").session.close

    def next_token() -> Callable[[], None]:
        session.append([token])
        return lambda: session.truncate(length)

    # Whatever is thawed comes after a token: a model that has just passed through the caches.
    calls = {"next": next_token, "thaw": thaw, "again": next_token, "new": thaw_new}
    times = turns(calls, seconds=SECONDS)
    thawing, new = 1e3 * median(times["thaw"]), 1e3 * median(times["new"])
    found.append(row(f"thaw {case}", thawing, "ms", peer, 1e3 * read))
    found.append(row(f"thaw of new {case}", new, "ms", "thaw", thawing))
    plain, more = _more(model, path, seconds=50 * SECONDS)
    for name, much in (("first token", median(more)), ("at most", interval(more)[1])):
        found.append(row(f"{name} {case}", 1e3 * (plain + much), "ms", "next token", 1e3 * plain))
    _, more = _more(model, path, seconds=5 * SECONDS, layers=LAYERS)
    beyond = [1e3 * seconds for seconds in more]
    found.append(row(f"beyond {case}", median(beyond), "ms", "at most, 95 %", interval(beyond)[1]))
    for name in (path, *names):
        name.unlink()
    return found


def _more(
    model: LanguageModel, path: Path, *, seconds: float, layers: int | None = None
) -> tuple[float, list[float]]:
    """Seconds of a token, and how many more a thaw and that token took, in each turn.

    Args:
        model: the session's.
        path: a session that was frozen.
        seconds: for all turns.
        layers: of the model, from the first on; None for all of them.
    """
    (token,) = tokens(1)
    engine, thawed = model.engine, list[OwnSession]()
    cut: Tape | None = None

    def begin(make: Make, then: Make | None) -> None:
        nonlocal cut
        del then
        make()
        (session,) = thawed
        if cut is None:
            cut = _of_layers(engine, session.region, layers or 0)
        engine.device.play(engine.compile(cut, session.pages, session.near))

    def first() -> Callable[[], None]:
        session = thaw_session(model, path, verify="off").session
        thawed.append(session)
        if layers is not None:
            session._play = begin  # pyright: ignore[reportPrivateUsage]
        session.append([token])
        return lambda: session.truncate(session.length - 1)

    def again() -> Callable[[], None]:
        (session,) = thawed
        session.append([token])
        thawed.clear()
        return session.close

    times = turns({"first": first, "again": again}, seconds=seconds, most=MOST_PAIRS)
    # From one turn to the next a machine's speed changes by more than a thaw takes, within a turn less.
    more = [one - other for one, other in zip(times["first"], times["again"], strict=True)]
    return median(times["again"]), more


def _of_layers(engine: Engine, region: Region, layers: int) -> Tape:
    """A token's pass with only its first layers, and its logits."""
    logits = Tensor(Space.GUEST, region.logits.offset, (1, engine.config.vocabulary), DType.F32)
    few = replace(engine.config, layers=layers)
    weights = engine._weights  # pyright: ignore[reportPrivateUsage]
    return engine.validated(bytes(decoder(few, weights, region.batch(1), logits).tape))


def _write(path: Path, memory: LinearMemory, nbytes: int) -> Callable[[], None]:
    """As fast as the disk is: the same bytes in large writes, one fsync."""
    data = memoryview(memory.buffer())
    file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    try:
        left = nbytes
        while left:
            at = (nbytes - left) % len(data)
            left -= os.write(file, data[at : at + min(left, STEP)])
        os.fsync(file)
    finally:
        os.close(file)
    return path.unlink


def _publish(path: Path, memory: LinearMemory, nbytes: int) -> Callable[[], None]:
    """As durable as a file can be that replaces another: whenever the machine stops, one of them is whole."""
    temporary = path.with_name("temporary")
    _write(temporary, memory, nbytes)
    temporary.rename(path)
    sync_folder(path.parent)
    return path.unlink
