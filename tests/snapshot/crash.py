"""Breaks the writer of snapshots at every system call, and prints what was left each time as JSON.

A process of its own with one thread, because it forks. Arguments: one of WAYS, or `calls`; an empty folder.
"""

import errno
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from nocopy.errors import SnapshotWriteError
from nocopy.snapshot import write_snapshot
from nocopy.snapshot.publish import leftovers
from tests.snapshot import tracer
from tests.snapshot.made import manifest_of, memory_with

REFUSED = 3
ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EINTR": errno.EINTR, "EACCES": errno.EACCES}
SPARED = {"getrandom", "exit", "exit_group"}
"""Calls that have names, and no disk to fail them."""


class Scene:
    """A folder with or without an old snapshot, and what the new one will be."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "a.snapshot"
        self.memory = memory_with(290, [0, 1, 17, 39, *range(50, 290, 16)])  # threads hash so many chunks
        self.manifest = manifest_of(self.memory)
        self.write()
        self.new = self.path.read_bytes()
        self.path.unlink()
        other = memory_with(2, [1], seed=9)
        write_snapshot(self.path, manifest_of(other), [other])
        self.old = self.path.read_bytes()

    def write(self) -> int:
        try:
            write_snapshot(self.path, self.manifest, [self.memory])
        except SnapshotWriteError:
            return REFUSED
        return 0

    def play(self, plan: tracer.Plan, *, old: bool) -> dict:
        """One run, and what is there afterwards."""
        self.path.unlink(missing_ok=True)
        if old:
            self.path.write_bytes(self.old)
        outcome = tracer.run(self.write, plan)
        found = self.path.read_bytes() if self.path.exists() else None
        temporary = leftovers(self.path.parent)
        strangers = set(self.path.parent.iterdir()) - {self.path, *temporary}
        for path in temporary:
            path.unlink()
        return {
            "old": old,
            "status": outcome.status,
            "hit": None if outcome.hit is None else f"{outcome.hit.name} {outcome.hit.nth}",
            "found": {None: "nothing", self.old: "old", self.new: "new"}.get(found, "garbage"),
            "renamed": any(c.name == "rename" for c in outcome.calls if c is not outcome.hit),
            "leftovers": len(temporary),
            "strangers": len(strangers),
        }

    def calls(self) -> list[tracer.Call]:
        return tracer.run(self.write, tracer.Plan()).calls


def kill(scene: Scene) -> Iterator[dict]:
    for old in (False, True):
        number = 0
        while True:
            number += 1
            plan = tracer.Plan(lambda call, number=number: call.number == number, kill=True)
            result = scene.play(plan, old=old)
            yield result
            if result["hit"] is None:
                break


def fail(scene: Scene) -> Iterator[dict]:
    named = sorted({(c.name, c.nth) for c in scene.calls() if not c.name.isdigit()})
    for name, code in ERRORS.items():
        for call in named:
            if call[0] in SPARED:
                continue
            plan = tracer.Plan(lambda c, call=call: (c.name, c.nth) == call, fail=code)
            yield scene.play(plan, old=True) | {"error": name}


def shorten(scene: Scene) -> Iterator[dict]:
    for nth in range(1, 1 + sum(call.name == "pwrite64" for call in scene.calls())):
        plan = tracer.Plan(lambda c, nth=nth: c.name == "pwrite64" and c.nth == nth, shorten=True)
        yield scene.play(plan, old=True)


def full(scene: Scene) -> Iterator[dict]:
    """The disk is full from the n-th write on, and stays so."""
    for nth in range(1, 1 + sum(call.name == "pwrite64" for call in scene.calls())):
        plan = tracer.Plan(
            lambda c, nth=nth: c.name == "pwrite64" and c.nth >= nth, fail=errno.ENOSPC, again=True
        )
        yield scene.play(plan, old=True)


def stuck(scene: Scene) -> Iterator[dict]:
    """The disk breaks: nothing can be written or removed any more."""
    plan = tracer.Plan(lambda c: c.name in ("pwrite64", "unlink"), fail=errno.EIO, again=True)
    yield scene.play(plan, old=True)


WAYS = {"kill": kill, "fail": fail, "shorten": shorten, "full": full, "stuck": stuck}

if __name__ == "__main__":
    how, folder = sys.argv[1:]
    scene = Scene(Path(folder))
    if how == "calls":
        print(json.dumps([call.name for call in scene.calls()]))
    else:
        print(json.dumps(list(WAYS[how](scene))))
