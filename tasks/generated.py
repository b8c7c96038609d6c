"""The needle tasks of free answers as lmms-eval has them: a YAML of functions, for both families.

lmms-eval gives such a task the form that a model wants, simple or chat, but tells functions nothing of their task;
so a seed names the task, and each row carries it and what is measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from vniah.notices import QuietDict, closing, notice
from vniah.runs.open import metadata_of, open_task
from vniah.runs.task import Answer, NeedleTask
from vniah.tasks.errors import raise_error_of, rows_or_error


def logged_rows(task: NeedleTask) -> list[dict[str, Any]]:
    """The task's rows, each with what is measured, for the journal of a model's adapter."""
    told = {"provenance": json.dumps(task.provenance())}
    return [{**row, **told} for row in task.rows]


class GeneratedTask:
    """The functions of a family, for its YAML files to name.

    Args:
        family: "vniah" or "text_niah".
        name: of the task whose seed data set names none.
        opened: called with a task as its rows are made.
    """

    def __init__(self, family: str, name: str, opened: Callable[[NeedleTask], None] | None = None) -> None:
        self._family, self._name, self._opened = family, name, opened
        self._measured: dict[str, str] = {}

    def __repr__(self) -> str:
        # lmms-eval's cache of responses (--use_cache) tells documents apart by number, question and the task's
        # settings, in which its functions, methods of this object, stand as they print: neither haystack nor frames
        # nor depths. So that another run's answers aren't taken for this one's, what is measured is told here.
        return f"GeneratedTask({self._family!r}, {sorted(self._measured.items())})"

    def _open(self, seed: Mapping[str, Any]) -> NeedleTask:
        name = str(seed.get("task") or self._name)
        return open_task(name, self._family, "generated", {**metadata_of(name), **seed}, cached=True)

    def _of(self, doc: Mapping[str, Any]) -> NeedleTask:
        return self._open(json.loads(doc["seed"]))

    def process_docs(self, dataset: Any) -> Any:
        """Expand the one-line seed data set, which names the task, into the grid's rows."""
        seed = {} if dataset is None else dict(dataset[0])

        def rows() -> list[dict[str, Any]]:
            task = self._open(seed)
            self._measured[task.name] = task.provenance_key
            if self._opened is not None:
                self._opened(task)
            return [{**row, "seed": json.dumps(seed)} for row in logged_rows(task)]

        return rows_or_error(rows)

    def doc_to_visual(self, doc: dict[str, Any]) -> list[Any]:
        return self._of(doc).visuals(doc)

    def doc_to_text(self, doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
        """The question, or the whole prompt of a text task: megabytes at the paper's lengths.

        Raises:
            ValueError: bad settings, or inputs that cannot be had.
        """
        raise_error_of(doc)
        return self._of(doc).question(doc)

    def process_results(self, doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
        task = self._of(doc)
        text = results[0] if results else ""
        if not text.strip():
            notice(
                f"{task.name}: some answers are empty: a model may write one where it fails; see its log, "
                "and `vniah doctor --host-model`"
            )
        found = task.scores(doc, Answer(text=text))
        return {**found, task.provenance_name: doc["provenance"]}

    def provenance(self, items: list[str]) -> dict[str, Any]:
        """The aggregation of ``vniah_provenance`` and ``text_niah_provenance``; see ``NeedleTask``."""
        return QuietDict({**json.loads(items[0]), **closing()})
