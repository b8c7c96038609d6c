"""How far a run is, on standard error: a bar on a terminal, and a plain line a minute where it is kept in a file."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

LINE_EVERY_S = 60.0
_IN_A_FILE = "{desc}: {n_fmt} of {total_fmt} {unit} [{elapsed}<{remaining}]"


class Bar(tqdm):  # type: ignore[type-arg]
    """tqdm's bar. Where standard error is no terminal, it would fill a log with what was meant to be written over.

    Args:
        options: as tqdm takes them. A ``bar_format`` is that of the bar; a line is the same without it.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self._in_lines, self._told = not sys.stderr.isatty(), time.monotonic()
        if self._in_lines:
            form = str(options.get("bar_format") or _IN_A_FILE)
            options = {**options, "bar_format": form.replace("|{bar}| ", ""), "leave": False}
        super().__init__(*args, **{**options, "file": sys.stderr})

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:  # type: ignore[override]  # tqdm has no types and returns one
        """As tqdm's; also called at the end, to wipe the bar out."""
        if not self._in_lines:
            return bool(super().display(msg, pos))
        if msg is None and time.monotonic() - self._told >= LINE_EVERY_S:
            self._told = time.monotonic()
            print(self, file=sys.stderr, flush=True)
        return False
