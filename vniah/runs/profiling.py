"""Where the time of a run goes, by part: seconds, how often, and their share of the whole.

    profiling.start()
    with part("tower"):
        ...
    print(profiling.table(profiling.told()))

Parts nest, and each second is counted once: a part's are those that none inside it took, and what no part took is
"other", so that the parts of the main thread sum to the whole. Threads beside it (frames that are decoded ahead) are
counted apart, under "beside". While nothing is profiled, a part is nothing but a call.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

REST = "other"
_OFF: AbstractContextManager[None] = contextlib.nullcontext()
_BAR = 30


class Profile:
    """Seconds by part, of the thread that made it and of those beside it.

    Args:
        before: seconds that the process had run already; they are the part "start".
    """

    def __init__(self, before: float = 0.0) -> None:
        self._begun = time.perf_counter() - before
        self._threads: list[_Clock] = []
        self._here = threading.local()
        self._lock = threading.Lock()
        main = self._clock()
        if before:
            main.seconds["start"], main.counts["start"] = before, 1

    def _clock(self) -> _Clock:
        clock: _Clock | None = getattr(self._here, "clock", None)
        if clock is None:
            clock = self._here.clock = _Clock()
            with self._lock:
                self._threads.append(clock)
        return clock

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        clock = self._clock()
        clock.enter(name)
        try:
            yield
        finally:
            clock.leave()

    def told(self) -> dict[str, Any]:
        """What was taken so far.

        Returns:
            ``seconds`` in all; ``parts`` of the main thread, which sum to them, and ``beside``, of other threads: by
            name ``{"seconds", "count"}``, the longest first.
        """
        with self._lock:
            main, *beside = self._threads
        main.switch()
        whole = time.perf_counter() - self._begun
        others = _rows(beside)
        others.pop(REST, None)  # they waited for something to do
        return {"seconds": round(whole, 3), "parts": _rows([main]), "beside": others}


class _Clock:
    """The seconds of one thread: the part that is innermost has them."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.counts: Counter[str] = Counter()
        self._stack = [REST]
        self._since = time.perf_counter()

    def switch(self) -> None:
        """Give what has passed to the innermost part."""
        now = time.perf_counter()
        self.seconds[self._stack[-1]] += now - self._since
        self._since = now

    def enter(self, name: str) -> None:
        _wait_for_device()
        self.switch()
        self._stack.append(name)
        self.counts[name] += 1

    def leave(self) -> None:
        _wait_for_device()
        self.switch()
        self._stack.pop()


_running: Profile | None = None


def part(name: str) -> AbstractContextManager[None]:
    """Around a part of a run."""
    return _OFF if _running is None else _running.part(name)


def start(*, whole: bool = False) -> None:
    """Profile from here on, or go on with what is profiled.

    Args:
        whole: count what the process did before, as the part "start".
    """
    global _running
    if _running is None:
        _running = Profile(_process_seconds() if whole else 0.0)


def say() -> None:
    """End what is profiled, if anything, and print its table on standard error; of several processes the first's."""
    global _running
    found, _running = told(), None
    if found is not None and os.environ.get("RANK", "0") in ("", "0"):
        print(table(found), file=sys.stderr, flush=True)


def told() -> dict[str, Any] | None:
    """What was found so far; None where nothing is profiled."""
    return None if _running is None else _running.told()


def table(told: Mapping[str, Any]) -> str:
    """A profile to read: a line a part, its seconds, its share of the whole, how often, and a bar."""
    whole = max(told["seconds"], 1e-9)
    lines = [f"where {told['seconds']:.1f} s went", f"{'part':<22}{'s':>9}{'share':>8}{'count':>9}"]
    for name, rows in (("", told["parts"]), ("beside, in other threads", told["beside"])):
        lines += [name] if name and rows else []
        for part_name, row in rows.items():
            share = row["seconds"] / whole
            bar = "#" * round(_BAR * min(share, 1))
            lines.append(f"{part_name:<22}{row['seconds']:>9.2f}{share:>8.1%}{row['count']:>9,}  {bar}".rstrip())
    return "\n".join(lines)


def _rows(clocks: Sequence[_Clock]) -> dict[str, dict[str, Any]]:
    seconds: defaultdict[str, float] = defaultdict(float)
    counts: Counter[str] = Counter()
    for clock in clocks:
        for name, took in list(clock.seconds.items()):
            seconds[name] += took
        counts.update(dict(clock.counts))
    ordered = sorted(seconds, key=lambda name: -seconds[name])
    return {name: {"seconds": round(seconds[name], 3), "count": counts[name]} for name in ordered}


def _wait_for_device() -> None:
    """What a CUDA device was given is done before a clock is read."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _process_seconds() -> float:
    """How long this process has run; 0 where the system does not say (only Linux does, here)."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    return 0.0
