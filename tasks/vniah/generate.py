"""Functions of `vniah_generate`: any lmms-eval model is shown the composed mp4 and answers freely."""

from __future__ import annotations

import argparse
import sys

from vniah import hosts
from vniah.compose import composed_frames
from vniah.notices import notice
from vniah.runs.task import NeedleTask
from vniah.tasks.generated import GeneratedTask
from vniah.visual import metrics


def _check_host(task: NeedleTask) -> None:
    told = task.describe()
    frames = max(composed_frames(int(row["num_frames"])) for row in task.rows)
    warning = host_warning(frames, told["presentation"], sys.argv[1:])
    if warning:
        notice(f"{task.name}: {warning}")


def host_warning(frames: int, presentation: str, argv: list[str]) -> str:
    """Why the model on this command line would miss a one-frame needle, or "" when nothing says so.

    lmms-eval tells a task nothing of the model, so its command line is read. Its models sample 8 to 64 frames by
    default: a needle between two sampled frames is never seen.

    Args:
        frames: of the longest composed video.
        presentation: "video" or "images".
        argv: the command line's arguments.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--model")
    parser.add_argument("--model_args", default="")
    known, _ = parser.parse_known_args(argv)
    if known.model is None or known.model == "longva_ring":
        return ""
    return hosts.warning(known.model, known.model_args, frames, presentation)


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
