"""Work in parts on several processes, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def map_parts(work: Callable[[T], Any], parts: Iterable[T], workers: int) -> list[Any]:
    """``work`` of every part, in order, on ``workers`` processes (in this one where one is enough).

    Args:
        work: something that can be pickled.
        parts: what it is called with.
        workers: processes at most.
    """
    items = list(parts)
    if workers <= 1 or len(items) <= 1:
        return [work(item) for item in items]
    import multiprocessing

    with ProcessPoolExecutor(min(workers, len(items)), mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(work, items))
