"""The log of a stage's run: metrics.jsonl, one line a log event."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from vniah.files import read_json, replacing

METRICS = "metrics.jsonl"


class MetricsLog:
    """metrics.jsonl: one line a log event. ``rewind`` takes it back to a checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last_loss = float("nan")

    def rewind(self, checkpoint: str | None) -> None:
        """Begin as the run was at a checkpoint, by the state that the Trainer kept there; anew for ``None``.

        What stands in the file is not read: a kill or a bad disk may have left anything.
        """
        history = read_json(Path(checkpoint) / "trainer_state.json")["log_history"] if checkpoint else []
        events = [_event(logs["step"], logs) for logs in history if "loss" in logs]
        self.last_loss = events[-1]["loss"] if events else float("nan")
        with replacing(self.path) as part:
            part.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")

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
                log.write(_event(state.global_step, logs))

    return Logged()


def _event(step: int, logs: dict[str, Any]) -> dict[str, Any]:
    return {"step": step, **{key: value for key, value in logs.items() if key not in ("epoch", "step")}}


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
