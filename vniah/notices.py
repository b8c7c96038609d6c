"""What a user must know of a run that goes on all the same: said once on standard error, and kept for the results.

Python's own warnings are no way to say it: lmms-eval switches them off when it is imported.
"""

from __future__ import annotations

import os
import sys
import threading

_said: dict[str, None] = {}
_lock = threading.Lock()


def notice(text: str) -> None:
    """Say ``text`` on standard error, once a process, and record it.

    Of several processes that work together the first one speaks for all; each records what it met.
    """
    with _lock:
        if text in _said:
            return
        _said[text] = None
    if os.environ.get("RANK", "0") in ("", "0"):
        print(f"vniah: warning: {text}", file=sys.stderr, flush=True)


def recorded(since: int = 0) -> tuple[str, ...]:
    """Every notice of this process so far, from the ``since``-th on."""
    with _lock:
        return tuple(_said)[since:]


def forget() -> None:
    """Begin anew: another run in the same process says its own."""
    with _lock:
        _said.clear()
