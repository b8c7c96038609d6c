"""Calls and transfers that would not end."""

from __future__ import annotations

import threading
import time

import pytest

from vniah import hub
from vniah.hub import Pulse, within


def test_a_call_in_time_gives_what_it_gives() -> None:
    assert within(60, lambda: 7) == 7 and within(60, lambda: None) is None

    def fails() -> None:
        raise LookupError("its own")

    with pytest.raises(LookupError, match="its own"):
        within(60, fails)


def test_a_call_without_end_is_left() -> None:
    hold = threading.Event()
    with pytest.raises(TimeoutError, match=r"no whole answer within 0\.05 s"):
        within(0.05, hold.wait)
    hold.set()


def test_a_trickle_is_a_pause_and_a_slow_line_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(hub.time, "monotonic", lambda: now)
    trickle, slow, busy = Pulse(60), Pulse(60), Pulse(60)
    for _ in range(100):
        now += 1
        trickle.bytes_came(2)
        slow.bytes_came(2048)
        busy.at_work()
    assert trickle.left_s < 0 < slow.left_s <= 60 and busy.left_s == 60
    now += 61
    assert slow.left_s < 0, "what came long ago buys no more than a pause"


def test_a_call_that_is_given_up_does_not_try_again() -> None:
    """A library that retries would go on beside later calls, with connections that it shares with them."""
    tries: list[int] = []

    def call() -> None:
        while True:
            try:
                tries.append(1)
                time.sleep(0.05)
                raise OSError("again")
            except Exception:
                continue

    with pytest.raises(TimeoutError):
        within(0.2, call)
    for thread in threading.enumerate():
        if thread.name == "within a deadline":
            thread.join(10)
            assert not thread.is_alive()
    assert tries
