"""Work on arrays in threads, which NumPy and Arrow let run beside each other."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

# More wait for whoever reads the table, and each holds a batch.
_MAX_THREADS = 4

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


def count_threads() -> int:
    """Return how many threads have a processor of this machine to run on."""
    return min(_MAX_THREADS, len(os.sched_getaffinity(0)))


def map_in_order(function: Callable[[Item], Outcome], items: Iterable[Item], threads: int) -> Iterator[Outcome]:
    """Yield what the function makes of the items, in their order; no more than two a thread are under way.

    An exception is raised where its outcome would be. With one thread none is started.
    """
    if threads == 1:
        yield from map(function, items)
        return
    from concurrent.futures import Future, ThreadPoolExecutor

    with ThreadPoolExecutor(threads) as pool:
        under_way: deque[Future[Outcome]] = deque()
        for item in items:
            under_way.append(pool.submit(function, item))
            if len(under_way) > threads:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
