"""The progress bar of a run: cells done of all, and the time left by the FLOPs that are left."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

# Runs below so many FLOPs are over before a bar is read.
_WORTH_SHOWING = 1e9
_FORM = "{desc} |{bar}| {percentage:3.0f} % of the work [{elapsed}<{remaining}]"


class Progress:
    """What has been done, told to the bar."""

    def __init__(self, bar: tqdm[Any], total: int, done: int, of: int, unit: str) -> None:
        self._bar, self._total, self._done, self._of, self._unit = bar, total, done, of, unit
        self._begun = bar.disable
        self._say()

    def answered(self) -> None:
        """One more cell is scored."""
        self._done += 1
        self._say()

    def computed(self, flops: int) -> None:
        """So many more FLOPs are done."""
        if self._begun:
            self._bar.update(flops)
            return
        # Frames are encoded in the first step and are no FLOPs of the bar: its rate counts from here.
        self._begun = True
        self._bar.reset(self._total)
        self._bar.initial = self._bar.n = self._bar.last_print_n = flops
        self._bar.refresh()

    def _say(self) -> None:
        self._bar.set_description_str(f"vniah: {self._done:,} of {self._of:,} {self._unit}", refresh=False)


@contextmanager
def progress_bar(total: int, *, done: int, of: int, unit: str, show: bool) -> Iterator[Progress]:
    """A bar over ``total`` FLOPs.

    Args:
        done: cells that are scored already, of ``of`` in all.
        unit: what is counted, "cells" or "answers".
    """
    quiet = not show or total < _WORTH_SHOWING
    with tqdm(total=total, bar_format=_FORM, disable=quiet, file=sys.stderr) as bar:
        yield Progress(bar, total, done, of, unit)
