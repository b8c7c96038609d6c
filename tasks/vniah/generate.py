"""Functions of `vniah_generate`: any lmms-eval model is shown the composed mp4 and answers freely."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence

from vniah.notices import notice
from vniah.runs.task import NeedleTask
from vniah.tasks.generated import GeneratedTask
from vniah.visual import metrics

# What lmms-eval's models call the number of frames that they sample.
_FRAME_ARGUMENTS = re.compile(r"(?:^|,)(max_frames_num|max_num_frames|num_frames|nframes|max_frames|frames)=(\d+)")
# Qwen's video preprocessing merges frames two by two and floors an odd number.
_EVEN_FRAMES_ONLY = ("qwen2", "qwen3")


def _check_frame_counts(task: NeedleTask) -> None:
    frames = sorted({int(row["num_frames"]) for row in task.rows})
    warning = frame_count_warning(frames, sys.argv[1:])
    if warning:
        notice(f"{task.name}: {warning}")


def frame_count_warning(frames: Sequence[int], argv: list[str]) -> str:
    """Why the model on this command line would miss a one-frame needle, or "" when nothing says so.

    lmms-eval tells a task nothing of the model, so its command line is read. Built-in models sample 8 to
    64 frames by default: a needle between two sampled frames is never seen.

    Args:
        frames: the grid's num_frames, rising; each video has one frame more.
        argv: the command line's arguments.
    """
    needed = frames[-1] + 1
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--model")
    parser.add_argument("--model_args", default="")
    known, _ = parser.parse_known_args(argv)
    if known.model is None or known.model == "longva_ring":
        return ""
    found = _FRAME_ARGUMENTS.search(known.model_args)
    if found is None:
        return (
            f"the model {known.model!r} samples its own default number of frames, which may skip the one-frame "
            f"needle; pass its frame-count argument (max_num_frames, max_frames_num, ...) with at least {needed}"
        )
    if int(found.group(2)) < needed:
        return (
            f"{found.group(1)}={found.group(2)} is fewer than the {needed} frames of the longest video, so the model "
            f"may skip the one-frame needle; pass {found.group(1)}={needed}"
        )
    odd = [num_frames + 1 for num_frames in frames if (num_frames + 1) % 2]
    if odd and known.model.startswith(_EVEN_FRAMES_ONLY):
        return (
            f"the model {known.model!r} takes an even number of frames and leaves one out of videos of {odd[0]}, which "
            "may be the needle; choose odd frame counts, such as VNIAH_FRAMES=15,31,63, whose videos have one more"
        )
    return ""


_TASK = GeneratedTask("vniah", "vniah_generate", opened=_check_frame_counts)

process_docs = _TASK.process_docs
doc_to_visual = _TASK.doc_to_visual
doc_to_text = _TASK.doc_to_text
process_results = _TASK.process_results
provenance = _TASK.provenance
mean_accuracy = metrics.mean_accuracy
control_accuracy = metrics.control_accuracy
effective_frames = metrics.effective_frames
grid = metrics.grid
