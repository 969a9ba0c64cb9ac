"""From a tape to the launches that play it: which records are joined, and what memory they need beside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, TypeAlias
from weakref import WeakKeyDictionary

from nocopy.device.cuda_beside import beside
from nocopy.device.cuda_fuse import Chip, Fuser
from nocopy.device.cuda_fuse_rows import RowsFuser
from nocopy.device.cuda_launch import COUNTERS, AnyLaunch, Plan, plan
from nocopy.device.cuda_pages import CudaPages, DevicePages, RangedCudaPages, RegisteredPages
from nocopy.device.cuda_prefill import Prefill
from nocopy.device.cuda_records import Records
from nocopy.device.cuda_relocate import Planned
from nocopy.device.cuda_room import Room
from nocopy.device.cuda_walk import Step, Walks
from nocopy.device.cuda_words import Words, find_words, redirected
from nocopy.tape.record import Space
from nocopy.tape.validate import Tape

STOPPABLE_WORK = 2**22
"""Elements or multiply-adds from which on a tape can be stopped inside a graph or a kernel: below, it ends
within some milliseconds."""

Used: TypeAlias = Mapping[Space, CudaPages]
Frees: TypeAlias = list[Callable[[], None]]
"""Calls that free what a program holds."""
Launches: TypeAlias = list[AnyLaunch]


class PlanDriver(Protocol):
    """The part of `cuda_driver.Driver` that planning needs; its context is current during every call."""

    chip: Chip
    multiprocessors: int
    stop_address: int
    walks: bool
    groups: bool

    def allocate(self, nbytes: int) -> int:
        """Device memory."""
        ...

    def free(self, address: int) -> None:
        """Free what `allocate` returned."""
        ...


@dataclass(frozen=True)
class Kept:
    """What was planned for a model's tape, and what depends on the tape alone."""

    planned: Planned
    words: Words
    room_bytes: int
    workspace_bytes: int


class Planner:
    """Plans tapes for one GPU.

    Args:
        driver: the GPU.
        blas: whether a library takes large products.
    """

    def __init__(self, driver: PlanDriver, *, blas: bool) -> None:
        self._driver, self._blas = driver, blas
        self._room = Room(driver)
        self._kept: WeakKeyDictionary[Tape, Kept] = WeakKeyDictionary()

    def launches(self, tape: Tape, used: Used, frees: Frees) -> tuple[Launches, int]:
        """The launches of a tape in order, and the address of their workspace.

        Args:
            tape: what is to be played.
            used: the pages of each of its spaces.
            frees: gets a call for all that the launches need until the end.
        """
        guest, models = used.get(Space.GUEST), _models(used)
        kept = self._kept.get(tape) if models else None
        words = kept.words if kept else _words(tape, guest)
        if isinstance(guest, RangedCudaPages):
            guest.reach(words.ranges)  # what lies between two things that are copied is copied too
        copy = self._hold(words.nbytes, frees)
        have = kept.workspace_bytes if kept else 0
        workspace = self._workspace(have, frees)
        if kept:
            room = self._share(kept.room_bytes, frees)
            found = kept.planned.moved(_numbers(used, copy, room, workspace))
            if found is not None:
                return found, workspace
        addresses = {space: pages.device_address for space, pages in used.items()}
        records = Records(tape, redirected(tape, words, addresses, copy), addresses)
        stop = self._driver.stop_address if tape.work > STOPPABLE_WORK else 0
        prefill, room = None, 0
        if _fusible(used):
            prefill = Prefill(
                records, self._driver.multiprocessors, stop, blas=self._blas, groups=self._driver.groups
            )
            room = self._share(prefill.nbytes, frees)
            prefill.place(room)
        plans = [Plan(tuple(words.launches(addresses.get(Space.GUEST, 0), copy)))]
        plans += self._plans(records, prefill, stop)
        nbytes = max((each.workspace for each in plans), default=0)
        if nbytes > have:
            workspace = self._workspace(nbytes, frees)
        launches = [launch for each in plans for launch in each.launches]
        if models and prefill:
            planned = Planned(launches, workspace, _numbers(used, copy, room, workspace))
            if kept:
                kept.planned.learn(planned)
            else:
                self._kept[tape] = Kept(planned, words, prefill.nbytes, nbytes)
        return launches, workspace

    def _plans(self, records: Records, prefill: Prefill | None, stop: int) -> Iterator[Plan]:
        """The launches of records in order: groups of them where the GPU can play them as one."""
        driver, addresses = self._driver, records.addresses
        fuser = Fuser(records, driver.chip) if prefill else None
        rows = RowsFuser(records, driver.chip, stop) if prefill else None
        steps: list[Step] = []
        at = 0
        while at < len(records):
            if fuser and (found := fuser.group(at)):
                launches, count = found
                steps.append(Step(Plan(launches), at, count, tuple(launch.group for launch in launches)))
            elif (rows and (group := rows.group(at))) or (prefill and (group := prefill.group(at))):
                count = group[1]
                steps.append(Step(group[0], at, count))
            else:
                count = 1
                steps.append(Step(plan(records.raw[at], addresses, stop, driver.multiprocessors), at, 1))
            at += count
        if prefill and self._blas:
            steps = list(beside(records, steps, prefill.beside))
        if fuser and driver.walks:
            yield from Walks(records, driver.chip, driver.stop_address).join(steps)
        else:
            yield from (step.plan for step in steps)

    def _workspace(self, nbytes: int, frees: Frees) -> int:
        """Device memory that the launches of a record hand results on in; records run one after another."""
        return self._hold(4 * COUNTERS + nbytes, frees) + 4 * COUNTERS if nbytes else 0

    def _share(self, nbytes: int, frees: Frees) -> int:
        """Device memory that other programs use as well; 0 for none."""
        if not nbytes:
            return 0
        address, free = self._room.hold(nbytes)
        frees.append(free)
        return address

    def _hold(self, nbytes: int, frees: Frees) -> int:
        """Device memory; 0 for none."""
        if not nbytes:
            return 0
        address = self._driver.allocate(nbytes)
        frees.append(lambda: self._driver.free(address))
        return address


def _words(tape: Tape, guest: CudaPages | None) -> Words:
    """What is copied from the guest's pages as a program begins; nothing where they are as near as any."""
    return find_words(tape) if isinstance(guest, RegisteredPages | RangedCudaPages) else Words(())


def _models(used: Used) -> bool:
    """Whether a tape is a model's, which many sessions play, on pages of which only the address matters."""
    guest = used.get(Space.GUEST)
    return Space.WEIGHTS in used and isinstance(guest, RegisteredPages | RangedCudaPages) and _fusible(used)


def _fusible(used: Used) -> bool:
    """True if weights lie in the GPU's memory and no two spaces share bytes: see `Fuser` and `Prefill`."""
    if not isinstance(used.get(Space.WEIGHTS), DevicePages | None):
        return False
    ranges = sorted((p.device_address, p.device_address + p.nbytes) for p in used.values())
    return all(a[1] <= b[0] for a, b in pairwise(ranges))


def _numbers(used: Used, copy: int, room: int, workspace: int) -> tuple[int, ...]:
    """All that a plan's arguments are made of beside the tape: see `Planned`.

    An operand that names other memory than its space has the distance between the two for its offset.
    """
    own = tuple(used[space].device_address if space in used else 0 for space in Space)
    return (*own, copy, room, workspace, *(to - base for to in (copy, room) for base in own))
