"""Ranks that share a stage, worker processes that share a rank's work, and what they find that is bad.

The launcher (torchrun, accelerate launch) says by RANK and WORLD_SIZE who is who.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from vniah.files import read_json, replacing

T = TypeVar("T")


def rank() -> int:
    """This process among all; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes share the work; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def wait_for(path: Path, seconds: float = 1.0) -> None:
    """Wait until another process has written ``path``. Should that process die, the launcher ends this one."""
    while not path.is_file():
        time.sleep(seconds)


class BadSampleError(ValueError):
    """A sample that cannot be learnt from, for a reason to report."""


def sample_id(sample: Any, number: int) -> str:
    """What to call a sample in reports: its id where it has one, else its number."""
    given = sample.get("id") if isinstance(sample, dict) else None
    return f"#{number}" if given is None else re.sub(r"\s+", " ", str(given))


def check_bad(
    what: str, bad: Sequence[str], total: int, max_share: float, *, more: str = "", forget: Iterable[Path] = ()
) -> None:
    """Raise ValueError, naming the first, where more than ``max_share`` of the ``total`` are bad.

    The reports ``forget`` are removed before: what is mended by then is looked at again, and not remembered as bad.
    """
    if len(bad) > max_share * total:
        for path in forget:
            path.unlink()
        first = "; ".join(bad[:3])
        raise ValueError(
            f"{len(bad)} of {total} {what} are bad, more than the share of {max_share:g} allowed{more}: {first}"
        )


def remembered(path: Path, fingerprint: Any, look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``look`` reported of just this ``fingerprint`` (plain data), kept in ``path``; else what it reports now."""
    mark = hashlib.sha256(json.dumps(fingerprint).encode()).hexdigest()
    with suppress(OSError, ValueError):
        if (done := read_json(path)).get("fingerprint") == mark:
            return dict(done)
    report = {"fingerprint": mark, **look()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text(json.dumps(report) + "\n", encoding="utf-8")
    return report


def map_parts(work: Callable[[T], Any], parts: Iterable[T], workers: int) -> list[Any]:
    """``work`` of every part, in order, on at most ``workers`` processes (in this one where one is enough)."""
    items = list(parts)
    if workers <= 1 or len(items) <= 1:
        return [work(item) for item in items]
    with ProcessPoolExecutor(min(workers, len(items)), mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(work, items))
