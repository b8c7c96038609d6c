"""Functions of `vniah_generate`: any lmms-eval model is shown the composed mp4 and answers freely."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vniah.notices import notice
from vniah.runs.task import NeedleTask
from vniah.tasks.generated import GeneratedTask
from vniah.visual import hosts, metrics
from vniah.visual.compose import composed_frames


def _check_host(task: NeedleTask) -> None:
    told = task.describe()
    frames = max(composed_frames(int(row["num_frames"])) for row in task.rows)
    for warning in host_warnings(frames, told["presentation"], sys.argv[1:]):
        notice(f"{task.name}: {warning}")


def host_warnings(frames: int, presentation: str, argv: Sequence[str]) -> list[str]:
    """Why the models on this command line would miss a one-frame needle; empty when nothing says so.

    lmms-eval tells a task nothing of the model, so its command line is read, and the file of its ``--config``. Its
    models sample 8 to 64 frames by default: a needle between two sampled frames is never seen.

    Args:
        frames: of the longest composed video.
        presentation: "video" or "images".
        argv: the command line's arguments.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for option in ("--model", "--model_args", "--batch_size", "--config"):
        parser.add_argument(option)
    given = vars(parser.parse_known_args(argv)[0])
    warnings = []
    for run in _configured(given.pop("config", "")):
        known = {"model_args": "", "batch_size": "1", **run, **given}
        name = str(known.get("model") or "longva_ring")
        if name != "longva_ring":
            args = _as_text(known["model_args"])
            warnings.append(hosts.warning(name, args, frames, presentation, str(known["batch_size"])))
    return [one for one in dict.fromkeys(warnings) if one]


def _configured(path: str) -> list[dict[str, Any]]:
    """The runs of a ``--config``, which lmms-eval has read by now; without one, the command line's own."""
    import yaml

    if not path:
        return [{}]
    try:
        read = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return [{}]
    return [one for one in (read if isinstance(read, list) else [read]) if isinstance(one, dict)]


def _as_text(model_args: Any) -> str:
    """A config's may be a mapping."""
    if isinstance(model_args, Mapping):
        return ",".join(f"{key}={value}" for key, value in model_args.items())
    return str(model_args or "")


_TASK = GeneratedTask("vniah", "vniah_generate", opened=_check_host)

process_docs = _TASK.process_docs
doc_to_visual = _TASK.doc_to_visual
doc_to_text = _TASK.doc_to_text
process_results = _TASK.process_results
provenance = _TASK.provenance
mean_accuracy = metrics.mean_accuracy
control_accuracy = metrics.control_accuracy
effective_frames = metrics.effective_frames
grid = metrics.grid
