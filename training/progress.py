"""Progress bars of stages that run beside each other, each in a process that writes a metrics.jsonl."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vniah.training.metrics import METRICS, last_event


class StageBars:
    """One bar a running stage, in its optimizer steps, with the last loss. Nothing is drawn where no one looks on.

    Args:
        folder: the recipe's output folder, with a folder for each stage.
        shown: draw; ``None`` asks whether the output is a terminal.
    """

    def __init__(self, folder: Path, *, shown: bool | None = None) -> None:
        self._folder = folder
        self._disable = None if shown is None else not shown
        self._bars: dict[str, Any] = {}

    def add(self, name: str, steps: int | None) -> None:
        """Begin the bar of a stage; ``steps`` in all, where that is known."""
        from tqdm.auto import tqdm

        bar = tqdm(desc=name, total=steps or None, unit="step", leave=False, disable=self._disable)
        event = None if bar.disable else self._last(name)
        # A stage that goes on does not count the steps of before in its rate.
        bar.initial = bar.last_print_n = bar.n = event.get("step", 0) if event else 0
        self._bars[name] = bar
        bar.refresh()

    def update(self) -> None:
        """Move every bar to the last step that its stage has logged."""
        for name, bar in self._bars.items():
            event = None if bar.disable else self._last(name)
            if event is None or event.get("step", 0) == bar.n:
                continue
            bar.n = event["step"]
            # It goes on from its last checkpoint, which may lie before the last step that was logged.
            bar.initial = min(bar.initial, bar.n)
            if "loss" in event:
                bar.set_postfix(loss=f"{event['loss']:.3f}", refresh=False)
            bar.refresh()

    def _last(self, name: str) -> dict[str, Any] | None:
        return last_event(self._folder / name / "run" / METRICS)

    def remove(self, name: str) -> None:
        """End the bar of a stage."""
        self._bars.pop(name).close()

    def beside(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """``say``, such that its lines and the bars do not write into each other."""
        from tqdm.auto import tqdm

        def said(line: str) -> None:
            with tqdm.external_write_mode():
                say(line)

        return said

    def close(self) -> None:
        """End the bars that are left."""
        for name in list(self._bars):
            self.remove(name)
