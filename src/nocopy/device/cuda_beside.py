"""Chains of launches that need nothing of each other play side by side.

A layer's queries are a product and a rotation, its keys and values a product and a way to the cache. Neither
reads what the other writes, and with a few hundred rows neither has work for a whole GPU. In a graph they are
two branches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from nocopy.device.cuda_blas import BlasLaunch
from nocopy.device.cuda_launch import AnyLaunch, Branch, Fields, Launch, Plan
from nocopy.device.cuda_records import Records, Touched, interleaved, overlap
from nocopy.device.cuda_walk import Step

KERNELS = frozenset({"rope_rows", "keep_rows"})
SOURCES = frozenset({"binary", "norm", "rope", "scatter"})
"""Kernels, and sources of kernels, that write what their records do and nothing else; the latter only where
they write it there."""


def beside(records: Records, steps: Sequence[Step], workspace: int) -> Iterator[Step]:
    """The steps, some of them joined to one of two branches.

    Args:
        records: what they play.
        steps: in order.
        workspace: device address of working memory for the second branch's products.
    """
    at = 0
    while at < len(steps):
        count, first, second = _branches(records, steps, at)
        if count:
            aside = (_with(step, workspace) for step in second)
            others = (step.plan.launches[0] for step in first)
            launches = Plan((Branch.APART, *aside, Branch.BACK, *others, Branch.MEET))
            yield Step(launches, steps[at].first, sum(step.count for step in steps[at : at + count]))
        else:
            yield steps[at]
        at += count or 1


def pieces(launches: Sequence[AnyLaunch], most: int) -> Iterator[list[AnyLaunch]]:
    """Launches for one graph after another; branches stay in one, which may be longer than `most` for it."""
    piece, apart = list[AnyLaunch](), False
    for launch in launches:
        piece.append(launch)
        if isinstance(launch, Branch):
            apart = launch is not Branch.MEET
        if len(piece) >= most and not apart:
            yield piece
            piece = []
    if piece:
        yield piece


def _branches(records: Records, steps: Sequence[Step], at: int) -> tuple[int, list[Step], list[Step]]:
    """How many steps are two chains, and those; 0 if the first two are not products that begin them."""
    first, second = list[Step](), list[Step]()
    for step in (steps[i] for i in range(at, len(steps))):
        if not _plain(records, step):
            break
        with_first, with_second = (_meets(records, each, step) for each in (first, second))
        if with_first and with_second:
            break
        begins = len(first) + len(second) < 2
        if begins and (with_first or not isinstance(step.plan.launches[0], BlasLaunch)):
            break
        (second if first and not with_first else first).append(step)
    return (len(first) + len(second) if second else 0), first, second


def _with(step: Step, workspace: int) -> AnyLaunch:
    launch = step.plan.launches[0]
    return replace(launch, workspace=workspace) if isinstance(launch, BlasLaunch) else launch


def _plain(records: Records, step: Step) -> bool:
    """True if a step's launch touches what its records do, and beside that only reads."""
    if len(step.plan.launches) != 1 or step.plan.workspace or step.groups:
        return False
    launch = step.plan.launches[0]
    if not isinstance(launch, Launch) or launch.shape.kernel in KERNELS:
        return isinstance(launch, Launch | BlasLaunch)
    own = Fields.unpack(launch.record).operands[0] == records[step.first].operands[0]
    return launch.shape.source in SOURCES and own


def _meets(records: Records, steps: Sequence[Step], other: Step) -> bool:
    """True if a step has to come after one of others."""
    return any(
        (a.written or b.written) and overlap(a.range, b.range) and not interleaved(a, b)
        for step in steps
        for a in _touched(records, step)
        for b in _touched(records, other)
    )


def _touched(records: Records, step: Step) -> list[Touched]:
    return [each for i in range(step.first, step.first + step.count) for each in records.touched(i)]
