"""The log of a stage's run: metrics.jsonl, one line a log event."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from vniah.atomic import replacing

METRICS = "metrics.jsonl"


class MetricsLog:
    """metrics.jsonl: one line a log event. ``rewind`` drops what a resumed run will write again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last_loss = float("nan")

    def rewind(self, step: int) -> None:
        """Keep whole lines up to ``step``; a torn last line goes."""
        kept = []
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    event = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if event.get("step", 0) <= step:
                    kept.append(line)
                    self.last_loss = event.get("loss", self.last_loss)
        with replacing(self.path) as part:
            part.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def write(self, event: dict[str, Any]) -> None:
        self.last_loss = event.get("loss", self.last_loss)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")


def log_callback(log: MetricsLog) -> Any:
    from transformers import TrainerCallback

    class Logged(TrainerCallback):
        """Writes every log event to metrics.jsonl and stops on a loss that is not finite."""

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs is None or "loss" not in logs:
                return
            if not math.isfinite(logs["loss"]):
                raise ValueError(f"the loss is {logs['loss']} at step {state.global_step}; lower the learning rate")
            if state.is_world_process_zero:
                log.write({"step": state.global_step, **{k: v for k, v in logs.items() if k != "epoch"}})

    return Logged()


def last_event(path: Path) -> dict[str, Any] | None:
    """The last whole line of a metrics.jsonl that may be being written; ``None`` where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(event, dict):
            return event
    return None
