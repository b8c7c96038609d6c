"""Small runs for tests: scored cells, and the files that lmms-eval 0.7.3 leaves of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vniah.needles import open_needles
from vniah.runs.run import Run, cells_table
from vniah.runs.task import Answer, NeedleTask
from vniah.visual.scenes import Needles
from vniah.visual.task import VisualTask

FRAMES, DEPTHS, NEEDLES = (4, 8, 16), (0, 50, 100), ("cat", "dog")
DATE = "20250102_030405"
# The task by which cells are scored, without the film that it shows.
TASK = VisualTask.__new__(VisualTask)
NeedleTask.__init__(TASK, "vniah", "teacher-forced")
vars(TASK)["provenance_key"] = "0"
TASK.scenes = Needles(open_needles("icons:0:1"))
# (num_frames, depth_percent or None, needle) -> was it found
Found = Callable[[int, "int | None", str], bool]


def found_near_the_end(num_frames: int, depth: int | None, needle: str) -> bool:
    """Everything up to 8 frames, at 16 only the last depth; the control guesses "dog" at 4 frames."""
    if depth is None:
        return num_frames == 4 and needle == "dog"
    return num_frames <= 8 or depth == 100


def sample_rows(
    found: Found = found_near_the_end,
    *,
    frames: Sequence[int] = FRAMES,
    depths: Sequence[int] = DEPTHS,
    needles: Sequence[str] = NEEDLES,
    wrong: str = "no idea",
) -> list[dict[str, Any]]:
    """Logged samples of ``vniah``, made by the task's own metrics, as lmms-eval writes them."""
    rows = []
    for num_frames in frames:
        for depth in (*depths, None):
            for needle in needles:
                correct = found(num_frames, depth, needle)
                cell = {
                    "num_frames": num_frames,
                    "depth_percent": -1 if depth is None else depth,
                    "needle": needle,
                    "needle_index": -1 if depth is None else num_frames * depth // 100,
                    "control": depth is None,
                    "question": f"Find the frame of a {needle}. What is it?",
                    "answer": needle,
                }
                details = {
                    "predicted": needle if correct else wrong,
                    "predicted_ids": [7, 8] if correct else [7, 9],
                    "answer_ids": [7, 8],
                    "answer_logprobs": [-0.25, -0.5 if correct else -4.0],
                }
                scores = TASK.scores(cell, Answer.forced(correct, details))
                rows.append(
                    {
                        "doc_id": len(rows),
                        "target": needle,
                        "filtered_resps": f"(-0.5, {correct})",
                        "doc_hash": "0",
                        "input": cell["question"],
                        **{name: value for name, value in scores.items() if name != TASK.provenance_name},
                    }
                )
    return rows


def results_of(rows: Iterable[Mapping[str, Any]], *, model: str, model_args: str = "", **more: Any) -> dict[str, Any]:
    """The ``results.json`` of those rows."""
    rows = list(rows)
    scores = {
        f"{name},none": function([row[name] for row in rows if name in row])
        for name, (function, _) in TASK.metrics.items()
        if name != TASK.provenance_name
    }
    return {
        "results": {"vniah": {"alias": "vniah", "samples": len(rows), **scores, "vniah_acc_stderr,none": "N/A"}},
        "configs": {"vniah": {"task": "vniah", "metadata": {"frames": "4,8,16", "haystack_fingerprint": "f00d"}}},
        "versions": {"vniah": 1.0},
        "n-samples": {"vniah": {"original": len(rows), "effective": len(rows)}},
        "config": {"model": "longva_ring", "model_args": model_args or f"pretrained={model}"},
        "lmms_eval_version": "0.7.3",
        "model_name": model,
        "total_evaluation_time_seconds": "12.5",
        **more,
    }


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_evaluation(
    out: Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    model: str = "lmms-lab/LongVA-7B",
    date: str = DATE,
    log_samples: bool = True,
    model_args: str = "",
) -> Path:
    """``out`` as ``lmms-eval --output_path out [--log_samples]`` leaves it; returns ``out``."""
    folder = out / model.replace("/", "__")
    folder.mkdir(parents=True, exist_ok=True)
    results = results_of(rows, model=model, model_args=model_args)
    (folder / f"{date}_results.json").write_text(json.dumps(results), encoding="utf-8")
    if log_samples:
        write_lines(folder / f"{date}_samples_vniah.jsonl", rows)
    return out


def write_metrics(
    out: Path, task: str, values: Mapping[str, Any], *, model: str = "lmms-lab/LongVA-7B", model_args: str = ""
) -> Path:
    """An evaluation of a task without needles: metrics and no samples."""
    folder = out / model.replace("/", "__")
    folder.mkdir(parents=True, exist_ok=True)
    whole = {
        "results": {task: {"alias": task, **{f"{name},none": value for name, value in values.items()}}},
        "configs": {task: {"task": task}},
        "config": {"model": "longva_ring", "model_args": model_args},
        "model_name": model,
    }
    (folder / f"{DATE}_results.json").write_text(json.dumps(whole), encoding="utf-8")
    return out


def metrics_run(
    task: str,
    metrics: dict[str, float],
    *,
    name: str = "ours",
    frames: int | None = None,
    limit: float | None = None,
    unscored: tuple[str, ...] = (),
) -> Run:
    """A run of a task without needles: metrics, and how many frames and documents it took."""
    model: dict[str, Any] = {"model_args": f"pretrained=x,max_frames_num={frames}"} if frames else {}
    model |= {"limit": limit} if limit else {}
    settings = {"model": model} if model else {}
    return Run(name=name, task=task, model="x", metrics=metrics, unscored=unscored, settings=settings)


def without(run: Run, **place: Any) -> Run:
    """The run without the cells of a place, such as ``num_frames=8, depth_percent=50``."""
    gone = run.cells[list(place)].isin({key: [value] for key, value in place.items()}).all(axis=1)
    return replace(run, cells=run.cells[~gone])


def small_run(found: Found = found_near_the_end, *, name: str = "tiny", train_frames: float | None = None) -> Run:
    """The run of ``sample_rows`` without any files."""
    cells = cells_table(
        {"num_frames": frames, "depth_percent": depth, "needle": needle, "correct": found(frames, depth, needle)}
        for frames in FRAMES
        for depth in (*DEPTHS, None)
        for needle in NEEDLES
    )
    return Run(name=name, task="vniah", model=name, cells=cells, train_frames=train_frames)
