"""Items worked out by a thread ahead of who takes them. Knows nothing about frames."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T], Iterator[T]):
    """``items``, of which a thread keeps up to ``limit`` ready. It starts at once.

    Errors of ``items`` are raised where they would have come. ``close`` ends the thread and closes ``items``.
    """

    def __init__(self, items: Generator[T], *, limit: int, name: str) -> None:
        self._items = items
        self._ready: queue.Queue[T | _Raised | None] = queue.Queue(maxsize=limit)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._produce, name=name, daemon=True)
        self._thread.start()

    def __next__(self) -> T:
        if self._stopped.is_set():
            raise StopIteration
        item = self._ready.get()
        if item is None or isinstance(item, _Raised):
            self._stopped.set()
            raise StopIteration if item is None else item.error
        return item

    def close(self) -> None:
        """Returns when the thread has ended: it may hold what another is to use next."""
        self._stopped.set()
        self._thread.join()

    def _produce(self) -> None:
        try:
            with closing(self._items):
                for item in self._items:
                    self._put(item)
                    if self._stopped.is_set():
                        return
            self._put(None)
        except BaseException as error:
            self._put(_Raised(error))

    def _put(self, item: T | _Raised | None) -> None:
        while not self._stopped.is_set():
            try:
                return self._ready.put(item, timeout=0.1)
            except queue.Full:
                continue


@dataclass(frozen=True, slots=True)
class _Raised:
    error: BaseException
