"""Limits on how long a call may take in all, where its own limits are a read's: a byte now and then outlives those."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

_T = TypeVar("_T")


class _StoppedError(BaseException):
    """In a thread whose caller waits no longer. No ``Exception``: a library that tries again must not catch it."""


def within(seconds: float, call: Callable[[], _T]) -> _T:
    """What ``call()`` gives, or what it raises.

    It runs in a thread of its own. One that takes too long is stopped at its next step, so that it does not try again
    behind the back of later calls, whose connections it would share. Where it waits, it is left to wait: it ends when
    its line does, or with the process, which does not wait for it.

    Raises:
        TimeoutError: it took longer.
    """
    done: list[Any] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(call())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True, name="within a deadline")
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not done:
        if thread.ident is not None:
            # What Python has for this: the exception is raised in that thread when it next runs Python code.
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(_StoppedError))
        raise TimeoutError(f"no whole answer within {seconds:g} s")
    result: _T = done[0]
    return result


class Pulse:
    """Whether a transfer of unknown length goes on: it may pause for ``pause_s`` seconds, and a trickle is a pause.

    Safe to share between threads.

    Args:
        pause_s: the longest that nothing, or next to nothing, may come.
        least_rate: bytes a second that keep it going.
    """

    def __init__(self, pause_s: float, least_rate: float = 1024.0) -> None:
        self._pause_s, self._least_rate = pause_s, least_rate
        self._lock = threading.Lock()
        self._until = time.monotonic() + pause_s

    def bytes_came(self, count: int) -> None:
        """Count bytes that have arrived: each buys the time that it may take at the least rate."""
        with self._lock:
            self._until = min(time.monotonic() + self._pause_s, self._until + count / self._least_rate)

    def at_work(self) -> None:
        """Say that there is work other than waiting for bytes: hashing, or another process that writes the file."""
        with self._lock:
            self._until = time.monotonic() + self._pause_s

    @property
    def left_s(self) -> float:
        """Seconds until it counts as dead; negative then."""
        with self._lock:
            return self._until - time.monotonic()
