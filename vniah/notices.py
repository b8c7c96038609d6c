"""What a run says of itself beside its scores: warnings, the model behind it, and the versions that it ran on.

A warning is said once on standard error and kept for the results. Python's own are no way to say it: lmms-eval
switches them off when it is imported. A model's adapter tells here which model it is, since a task of lmms-eval
never sees it.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import os
import platform
import sys
import threading
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from vniah.runs.profiling import told

_said: dict[str, None] = {}
_printed: set[str] = set()
_model: dict[str, Any] = {}
_lock = threading.Lock()
# What scores may depend on.
_PACKAGES = ("vniah", "torch", "transformers", "lmms-eval", "av", "numpy", "pillow")


def printable(text: object, *, lines: bool = False) -> str:
    """A text that may be from anywhere, for a terminal or a table: what would steer one is spelled out (``\\x1b``).

    Args:
        lines: leave line ends and tabs as they are.
    """
    # Joiners belong to scripts and emoji.
    kept = "\n\t \u200c\u200d" if lines else " \u200c\u200d"

    def shown(one: str) -> str:
        if one.isprintable() or one in kept:
            return one
        return " " if unicodedata.category(one) == "Zs" else one.encode("unicode_escape").decode()

    return "".join(map(shown, str(text)))


def shortened(text: object, most: int) -> str:
    """``text`` with at most ``most`` characters; what was cut is hashed, so that two texts stay two."""
    whole = str(text)
    if len(whole) <= most:
        return whole
    digest = hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    tail = f"... ({len(whole):,} characters, {digest})"
    return whole[: max(0, most - len(tail))] + tail


def notice(text: str, *, kind: str = "") -> None:
    """Say ``text`` on standard error, once a process, and record it.

    Of several processes that work together the first one speaks for all; each records what it met.

    Args:
        kind: of notices of one kind, which say the same of other figures, the first is printed; all are recorded.
    """
    with _lock:
        _said[text] = None
        if (kind or text) in _printed:
            return
        _printed.add(kind or text)
    if os.environ.get("RANK", "0") in ("", "0"):
        print(f"vniah: warning: {printable(text)}", file=sys.stderr, flush=True)


def recorded() -> tuple[str, ...]:
    """Every notice of this run so far."""
    with _lock:
        return tuple(_said)


def identify(model: Mapping[str, Any]) -> None:
    """Say which model this run is of: its name, fingerprint, and how it is run."""
    with _lock:
        _model.clear()
        _model.update(model)


def closing() -> dict[str, Any]:
    """What the end of a run says beside what was measured: warnings, model and versions."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    with _lock:
        found = {"warnings": list(_said), "model": dict(_model), "versions": versions}
    profile = told()
    return found if profile is None else {**found, "profile": profile}


def begin() -> None:
    """Another run in the same process: it records its own. What was printed stands above, and isn't printed again."""
    with _lock:
        _said.clear()
        _model.clear()


def forget() -> None:
    """Begin as a new process does."""
    begin()
    with _lock:
        _printed.clear()


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'LongVA-7B'?", whatever the letters' case; empty where nothing is near."""
    by_folded = {one.casefold(): one for one in known}
    near = difflib.get_close_matches(word.casefold(), by_folded, n=1)
    # A beginning is near however much is missing: "H100" of "H100-80GB".
    near = near or [one for one in by_folded if word and one.startswith(word.casefold())][:1]
    return f"; did you mean {by_folded[near[0]]!r}?" if near else ""


class QuietDict(dict[str, Any]):
    """Says that it is empty (``len``) but is not: lmms-eval prints every row as wide as its widest value,
    except values of length 0, which it passes over.

    A breakdown of fifty labels would make each row of the table 2,000 columns wide. Content, truth, equality,
    iteration and JSON are those of a plain dict.
    """

    def __len__(self) -> int:
        return 0

    def __bool__(self) -> bool:
        return any(True for _ in self)
