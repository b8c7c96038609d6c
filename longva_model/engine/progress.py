"""The progress bar of a run, in FLOPs, whose time left is that of the decoder."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

# Runs below so many FLOPs are over before a bar is read.
_WORTH_SHOWING = 1e9


@contextmanager
def flops_bar(total: int, *, show: bool) -> Iterator[Callable[[int], None]]:
    """A bar of ``total`` FLOPs; what is yielded is called with those of each finished step."""
    quiet = not show or total < _WORTH_SHOWING
    with tqdm(total=total, unit="FLOP", unit_scale=True, desc="vniah", disable=quiet, file=sys.stderr) as bar:
        begun = quiet

        def tick(flops: int) -> None:
            nonlocal begun
            if begun:
                bar.update(flops)
                return
            # Frames are encoded in the first step and are no FLOPs of the bar: its rate counts from here.
            begun = True
            bar.reset(total)
            bar.initial = bar.n = bar.last_print_n = flops
            bar.refresh()

        yield tick
