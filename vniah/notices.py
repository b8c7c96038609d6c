"""What a run says of itself beside its scores: warnings, the model behind it, and the versions that it ran on.

A warning is said once on standard error and kept for the results. Python's own are no way to say it: lmms-eval
switches them off when it is imported. A model's adapter tells here which model it is, since a task of lmms-eval
never sees it.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import threading
from collections.abc import Mapping
from typing import Any

_said: dict[str, None] = {}
_model: dict[str, Any] = {}
_lock = threading.Lock()
# What scores may depend on.
_PACKAGES = ("vniah", "torch", "transformers", "lmms-eval", "av", "numpy", "pillow")


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
        return {"warnings": list(_said), "model": dict(_model), "versions": versions}


def forget() -> None:
    """Begin anew: another run in the same process says its own."""
    with _lock:
        _said.clear()
        _model.clear()
