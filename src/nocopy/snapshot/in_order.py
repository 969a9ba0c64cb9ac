"""Work in threads, results in order, a bounded number of them waiting."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_order(pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """`map(work, items)` by the threads of `pool`, at most `ahead` items before the one that is asked for.

    Raises:
        whatever `work` raises.
    """
    started = (pool.submit(work, item) for item in items)
    waiting: deque[Future[R]] = deque(islice(started, ahead))
    while waiting:
        yield waiting.popleft().result()
        waiting.extend(islice(started, 1))
