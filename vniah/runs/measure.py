"""Measure needle tasks on a model: check, answer, score, write, and read back as runs.

The model is anything that answers cells (``Model``); this file knows none. Results files are laid out as lmms-eval lays
them out, so that every reader takes both for the same: ``OUT/<model>/<date>_results.json`` and, a task,
``OUT/<model>/<date>_samples_<task>.jsonl``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from vniah.files import replacing
from vniah.runs.callable_model import CellError
from vniah.runs.run import Run
from vniah.runs.scoring import ScoredPair
from vniah.runs.task import Answer, NeedleTask

# lmms-eval dates its files in the time of Singapore wherever it runs; in one folder the newest must be the newest.
_LMMS_EVAL_OFFSET = 8 * 3600


class Model(Protocol):
    """What answers cells."""

    name: str
    # Whether this process writes and prints for all that work together.
    speaks: bool

    def about(self) -> dict[str, Any]:
        """Which model this is, for the results."""
        ...

    def check(self, tasks: Sequence[NeedleTask]) -> None:
        """Raise ValueError for what cannot end well."""
        ...

    def answers(self, tasks: Mapping[str, NeedleTask], cells: Sequence[tuple[str, int]]) -> list[Answer]:
        """An answer for each (task, row number), in every process."""
        ...

    def finished(self) -> None:
        """The results are on the disk."""
        ...

    def interrupted(self) -> str:
        """What continues a run that was stopped."""
        ...


def measure(
    tasks: Sequence[NeedleTask], model: Model, *, output: Path | None = None, limit: int | None = None
) -> list[Run]:
    """Score every cell of the tasks.

    Args:
        tasks: opened, each once.
        model: what answers.
        output: folder for results files; none are kept without one.
        limit: the first so many cells of each task alone, controls counted: what comes of it is a partial run.

    Returns:
        One run a task, as ``vniah.runs.read`` reads them.

    Raises:
        ValueError: what the model's check finds.
        CellError: a cell that could not be answered; what was scored before it is in ``output``.
        OSError: the output cannot be written.
    """
    from vniah.runs.read import read_runs

    if limit is not None and limit < 1:
        raise ValueError(f"a limit of {limit} cells leaves nothing to score; give at least 1")
    output = output if model.speaks else None
    if output is not None:
        check_writable(output)
    model.check(tasks)
    by_name = {task.name: task for task in tasks}
    cells = [(task.name, number) for task in tasks for number in range(len(task.rows))[:limit]]
    begun = time.time()

    def write(answers: Sequence[Answer], folder: Path) -> Path:
        """Score and write what was answered, the first so many cells."""
        samples: dict[str, list[dict[str, Any]]] = {}
        for (name, number), answer in zip(cells, answers, strict=False):
            samples.setdefault(name, []).append(_sample(by_name[name], number, answer))
        results = {
            **_results({by_name[name]: rows for name, rows in samples.items()}),
            "config": {**model.about(), "limit": limit},
            "host": "vniah run",
            "model_name": model.name,
            "total_evaluation_time_seconds": f"{time.time() - begun:.3f}",
        }
        return write_results(model_folder(folder, model.name), results, samples)

    try:
        answered = model.answers(by_name, cells)
    except CellError as error:
        kept = ""
        if output is not None and error.answered:
            path = write(error.answered, output)
            kept = f"; the {len(error.answered)} of {len(cells)} cells before it are in {path}"
        raise CellError(f"{error}{kept}", error.answered) from error.__cause__
    if output is not None:
        path = write(answered, output)
        model.finished()
        return read_runs(path)
    with tempfile.TemporaryDirectory() as folder:
        runs = read_runs(write(answered, Path(folder)))
    return [replace(run, settings={key: one for key, one in run.settings.items() if key != "files"}) for run in runs]


def _results(samples: Mapping[NeedleTask, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """The figures of the tasks and what they measured, as lmms-eval's results.json has them."""
    found: dict[str, dict[str, Any]] = {
        key: {} for key in ("results", "configs", "versions", "higher_is_better", "n-samples")
    }
    for task, rows in samples.items():
        values = {name: [row[name] for row in rows if name in row] for name in task.metrics}
        figures = {f"{name},none": task.metrics[name][0](these) for name, these in values.items() if these}
        found["results"][task.name] = {"alias": task.name, **figures}
        found["configs"][task.name] = {
            "task": task.name,
            "output_type": "loglikelihood" if task.scoring == "teacher-forced" else "generate_until",
            "generation_kwargs": dict(task.generation),
            "metadata": task.provenance(),
        }
        found["versions"][task.name] = 1.0
        found["higher_is_better"][task.name] = {name: higher for name, (_, higher) in task.metrics.items()}
        found["n-samples"][task.name] = {"original": len(task.rows), "effective": len(rows)}
    return found


def _sample(task: NeedleTask, number: int, answer: Answer) -> dict[str, Any]:
    """A logged sample as lmms-eval writes it."""
    row, response = task.rows[number], answer.text
    if answer.is_greedy is not None:
        details = {**answer.logged(), "prompt_tokens": answer.prompt_tokens}
        response = str(ScoredPair(float(sum(answer.answer_logprobs)), answer.is_greedy, details))
    # A text prompt of megabytes is not logged.
    question = task.question(row) if task.unit == "frames" or answer.is_greedy is not None else str(row["question"])
    target = task.target(row)
    return {
        "doc_id": number,
        "target": target,
        "filtered_resps": response,
        "doc_hash": hashlib.sha256(f"{question}\n{target}".encode()).hexdigest(),
        **task.scores(row, answer),
        "input": question,
    }


def model_folder(output: Path, model: str) -> Path:
    """Where the results of a model go, named as lmms-eval names it."""
    clean = re.sub(r"[\"<>:/|\\?*\[\]]+", "__", "/".join(model.split("/")[-2:]))
    return output / (clean if clean.strip(".") else "model")


def check_writable(output: Path) -> None:
    """Raise unless a results folder can be made at ``output``; leaves nothing behind but the folder.

    Raises:
        OSError: a file stands there, or the disk does not let us write.
    """
    if output.is_file():
        raise NotADirectoryError(f"the output {output} is a file; give a folder")
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(
            error.errno, f"cannot write results: {error.strerror}; give another folder with -o", str(output)
        ) from None


def write_results(folder: Path, results: Mapping[str, Any], samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> Path:
    """Write an evaluation; files appear whole, the results last.

    Args:
        folder: see ``model_folder``.
        results: the content of results.json.
        samples: rows by task.

    Returns:
        The results file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _free_date(folder) as date:
        # All of it before any file: what JSON cannot hold must not leave half an evaluation.
        texts = {
            folder / f"{date}_samples_{task}.jsonl": "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
            for task, rows in samples.items()
        }
        path = folder / f"{date}_results.json"
        texts[path] = json.dumps({**results, "date": date}, indent=2, ensure_ascii=False)
        for file, text in texts.items():
            with replacing(file) as part:
                part.write_text(text, encoding="utf-8")
    return path


@contextlib.contextmanager
def _free_date(folder: Path) -> Iterator[str]:
    """Now as lmms-eval writes it, at a second that no evaluation in the folder has, nor another process takes."""
    moment = time.time()
    while True:
        date = time.strftime("%Y%m%d_%H%M%S", time.gmtime(moment + _LMMS_EVAL_OFFSET))
        claim = folder / f".{date}.claim"
        moment += 1
        try:
            claim.touch(exist_ok=False)
        except FileExistsError:
            continue
        try:
            if not any(folder.glob(f"{date}_*")):
                yield date
                return
        finally:
            claim.unlink(missing_ok=True)
