"""Runs a compiled guest that does with wasi-nn what it is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from nocopy.interfaces.host import DeviceGuest
from tools.guest_compiler import compile_guest

SOURCE = Path(__file__).with_suffix(".c")


class Done(NamedTuple):
    """What came of one call."""

    verb: str
    errno: int
    data: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.data)


class Ran(NamedTuple):
    """What came of all, the guest (closed), and what was logged."""

    done: list[Done]
    guest: DeviceGuest
    log: list[tuple[int, str]]

    def of(self, verb: str) -> list[Done]:
        """The calls of one verb."""
        return [done for done in self.done if done.verb == verb]

    def last(self, verb: str) -> Done:
        return self.of(verb)[-1]

    @property
    def errors(self) -> list[tuple[str, int]]:
        """The calls that failed."""
        return [(d.verb, d.errno) for d in self.done if d.errno]


Step = str | tuple[str, str | bytes | dict[str, Any]]


def build(folder: Path) -> Path:
    """Compile the guest."""
    return compile_guest([SOURCE], folder / "language.wasm")


def script(*steps: Step) -> bytes:
    """What the guest reads: verbs, with what they take."""
    raw = b""
    for step in steps:
        verb, value = (step, "") if isinstance(step, str) else step
        if isinstance(value, dict):
            value = json.dumps(value)
        data = value.encode() if isinstance(value, str) else value
        raw += b"%s %d\n%s" % (verb.encode(), len(data), data)
    return raw


def parse(raw: bytes) -> list[Done]:
    """What the guest wrote."""
    done: list[Done] = []
    while raw:
        head, _, raw = raw.partition(b"\n")
        verb, errno, size = head.split()
        size = 0 if int(errno) else int(size)
        done.append(Done(verb.decode(), int(errno), raw[:size]))
        assert raw[size : size + 1] == b"\n"
        raw = raw[size + 1 :]
    return done


def run(module: Path, *steps: Step, **kw: Any) -> Ran:
    """Run the steps in one guest. `kw` are `DeviceGuest`'s."""
    log: list[tuple[int, str]] = []
    with DeviceGuest(
        module,
        stdin=script(*steps),
        stdout="capture",
        log=lambda level, line: log.append((level, line)),
        **kw,
    ) as guest:
        guest.run()
    return Ran(parse(guest.stdout), guest, log)
