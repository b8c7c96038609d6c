"""The needle tasks of free answers as lmms-eval has them: functions for a YAML to name, for both families.

lmms-eval gives such a task the form that a model wants, simple or chat, but tells functions nothing of their task. So
the data set that a YAML names is the YAML itself; the rows made of it carry the task's name and metadata, and what is
measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from vniah.notices import QuietDict, closing, notice
from vniah.runs.open import open_task, parse_task
from vniah.runs.scoring import effective_at
from vniah.runs.task import Answer, NeedleTask
from vniah.tasks.called import CalledModel, called_models
from vniah.tasks.errors import raise_error_of, rows_or_error
from vniah.visual import hosts


def logged_rows(task: NeedleTask) -> list[dict[str, Any]]:
    """The task's rows, each with what is measured, for the journal of a model's adapter."""
    told = {"provenance": json.dumps(task.provenance())}
    return [{**row, **told} for row in task.rows]


class _GeneratedTasks:
    def __init__(self) -> None:
        self._measured: dict[str, str] = {}

    def __repr__(self) -> str:
        # lmms-eval's cache of responses (--use_cache) tells documents apart by number, question and the task's
        # settings, in which its functions, methods of this object, stand as they print: neither haystack nor frames
        # nor depths. So that another run's answers aren't taken for this one's, what is measured is told here.
        return f"GeneratedTasks({sorted(self._measured.items())})"

    def process_docs(self, dataset: Iterable[Mapping[str, str]]) -> Any:
        """The grid's rows, of a data set of the lines of a task's YAML."""

        def rows() -> list[dict[str, Any]]:
            config = parse_task("\n".join(line["text"] for line in dataset), "the task's data set")
            told = {"task": config["task"], "metadata": json.dumps(config["metadata"])}
            task = _task_of(told)
            self._measured[task.name] = task.provenance_key
            if task.unit == "frames":
                frames = max(int(row["num_video_frames"]) for row in task.rows)
                for warning in host_warnings(frames, task.describe()["presentation"], called_models()):
                    notice(f"{task.name}: {warning}", kind=warning)
            return [{**row, **told} for row in logged_rows(task)]

        return rows_or_error(rows)

    def doc_to_visual(self, doc: dict[str, Any]) -> list[Any]:
        return _task_of(doc).visuals(doc)

    def doc_to_messages(
        self, doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        raise_error_of(doc)
        return _task_of(doc).messages(doc)

    def doc_to_text(self, doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
        """The question, or the whole prompt of a text task: megabytes at the paper's lengths."""
        raise_error_of(doc)
        return _task_of(doc).question(doc)

    def process_results(self, doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
        task = _task_of(doc)
        text = results[0] if results else ""
        if not text.strip():
            notice(
                f"{task.name}: some answers are empty: a model may write one where it fails; see its log, "
                "and `vniah doctor --host-model`"
            )
        return {**task.scores(doc, Answer(text=text)), task.provenance_name: doc["provenance"]}

    def provenance(self, items: list[str]) -> dict[str, Any]:
        """The aggregation of ``vniah_provenance`` and ``text_niah_provenance``; see ``NeedleTask``."""
        return QuietDict({**json.loads(items[0]), "threshold": effective_at(), **closing()})


def _task_of(doc: Mapping[str, Any]) -> NeedleTask:
    return open_task(doc["task"], "generated", json.loads(doc["metadata"]), cached=True)


def host_warnings(frames: int, presentation: str, models: Iterable[CalledModel]) -> list[str]:
    """Why the models that are called would miss a one-frame needle; empty when nothing says so.

    lmms-eval's models sample 8 to 64 frames by default: a needle between two sampled frames is never seen.
    ``frames`` are those of the longest video.
    """
    warnings = [
        hosts.warning(model.name, model.args, frames, presentation, model.batch_size)
        for model in models
        if model.name not in ("longva_ring", "hf_tree", "served")
    ]
    return [one for one in dict.fromkeys(warnings) if one]


_TASKS = _GeneratedTasks()
process_docs = _TASKS.process_docs
doc_to_visual = _TASKS.doc_to_visual
doc_to_text = _TASKS.doc_to_text
doc_to_messages = _TASKS.doc_to_messages
process_results = _TASKS.process_results
provenance = _TASKS.provenance
