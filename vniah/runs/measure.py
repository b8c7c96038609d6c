"""Measure needle tasks on a model: check, answer, score, write, and read back as runs.

The model is anything that answers cells (``Model``), such as a function of the user's own (``CallableModel``). Results
files are laid out as lmms-eval lays them out, so that every reader takes both for the same:
``OUT/<model>/<date>_results.json`` and, a task, ``OUT/<model>/<date>_samples_<task>.jsonl``.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import CellType, CodeType, MethodType
from typing import Any, Protocol

from vniah.files import replacing
from vniah.notices import notice
from vniah.runs.journal import Journal, content_key, remove_journal, what_continues
from vniah.runs.run import Run
from vniah.runs.scoring import ScoredPair
from vniah.runs.task import Answer, NeedleTask

# lmms-eval dates its files in the time of Singapore wherever it runs; in one folder the newest must be the newest.
_LMMS_EVAL_OFFSET = 8 * 3600
Answerer = Callable[[Any, str], str]
_PLAIN = (str, bytes, int, float, complex, tuple, frozenset, type(None))
_DEEPEST = 8


class Model(Protocol):
    """What answers cells."""

    name: str
    # Whether this process writes and prints for all that work together.
    speaks: bool

    def about(self) -> dict[str, Any]:
        """Which model this is, for the results."""

    def check(self, tasks: Sequence[NeedleTask]) -> None:
        """Raise ValueError for what cannot end well."""

    def answers(self, tasks: Mapping[str, NeedleTask], cells: Sequence[tuple[str, int]]) -> Sequence[Answer | None]:
        """An answer for each (task, row number), in every process; ``None`` where the model gave none."""

    def finished(self) -> None:
        """The results are on the disk."""

    def interrupted(self) -> str:
        """What continues a run that was stopped."""


class CellError(ValueError):
    """A cell that the model could not answer.

    ``answered`` is what was, in the order of the cells; ``None`` for one that was not.
    """

    def __init__(self, message: str, answered: Sequence[Answer | None]) -> None:
        super().__init__(message)
        self.answered = tuple(answered)


def measure(
    tasks: Sequence[NeedleTask], model: Model, *, output: Path | None = None, limit: int | None = None
) -> list[Run]:
    """Score every cell of the tasks; one run a task, as ``vniah.runs.read`` reads them.

    Args:
        tasks: opened, each once.
        model: what answers.
        output: folder for results files; none are kept without one.
        limit: the first so many cells of each task alone, controls counted: what comes of it is a partial run.

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

    def write(answers: Sequence[Answer | None], folder: Path) -> Path:
        """Score and write what was answered of the first so many cells."""
        samples: dict[str, list[dict[str, Any]]] = {}
        for (name, number), answer in zip(cells, answers, strict=False):
            if answer is None:
                continue
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
        count = sum(answer is not None for answer in error.answered)
        if output is not None and count:
            path = write(error.answered, output)
            kept = f"; the {count} of {len(cells)} cells that were answered are in {path}"
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
    # A log-probability that nobody told is not 0.
    if answer.is_greedy is not None and answer.answer_logprobs:
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


def place_of(task: NeedleTask, number: int) -> str:
    """Which cell a row is, for an error."""
    row = task.rows[number]
    where = ", ".join(f"{key} {row[key]}" for key in (task.length_key, "needle"))
    return f"{task.name}, {where}, {'no needle' if row['control'] else 'depth ' + str(row['depth_percent'])}"


def model_folder(output: Path, model: str) -> Path:
    """Where the results of a model go, named as lmms-eval names it."""
    clean = re.sub(r"[\"<>:/|\\?*\[\]]+", "__", "/".join(model.split("/")[-2:]))
    return output / (clean if clean.strip(".") else "model")


def check_writable(output: Path) -> None:
    """Raise OSError unless a results folder can be made at ``output``; leaves nothing behind but the folder."""
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
    """Write the content of results.json and the samples by task; files appear whole, the results, returned, last."""
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


class CallableModel:
    """``function(mp4_path, question)`` returns the answer as text; the path is ``None`` for a task of text, and a list
    of PIL images where frames are shown as images (``VNIAH_PRESENTATION=images``).

    Args:
        function: the model.
        name: what to call it in results; the function's own name otherwise.
        folder: where a journal keeps the answers of a run that does not end; ``None`` keeps none. A function's code
            is part of what a journal is known by, what the code calls is not: the caller answers for that being the
            same when a run goes on.
    """

    speaks = True

    def __init__(self, function: Answerer, name: str = "", folder: Path | None = None) -> None:
        self.function = function
        self.name = _whole(name or str(getattr(function, "__name__", type(function).__name__)).strip("<>"))
        self.folder = folder
        self.journal: Path | None = None

    def about(self) -> dict[str, Any]:
        return {"model": "callable", "model_args": f"model={self.name}"}

    def check(self, tasks: Sequence[NeedleTask]) -> None:
        """Raise ValueError for a task that a free answer cannot be scored on, and for several processes that ask."""
        if int(os.environ.get("WORLD_SIZE") or 1) > 1:
            raise ValueError("a function answers in one process; run this without torchrun, or name a model")
        for task in tasks:
            if task.scoring != "generated":
                raise ValueError(
                    f"{task.name} is scored by teacher forcing, for which a function of text is no model; use "
                    f"{'vniah_generate' if task.unit == 'frames' else 'text_niah_generate'}"
                )

    def answers(self, tasks: Mapping[str, NeedleTask], cells: Sequence[tuple[str, int]]) -> list[Answer]:
        """Answers in order; CellError where the function raises, or returns something else than text."""
        from vniah.runs.progress import Bar

        names = list(dict.fromkeys(name for name, _ in cells))
        with contextlib.ExitStack() as stack:
            journal = None
            if self.folder is not None:
                code = content_key(self.name, code_of(self.function), [tasks[name].provenance_key for name in names])
                self.journal = self.folder / f"journal-{code[:12]}.jsonl"
                journal = stack.enter_context(Journal(self.journal))
                for name in names:
                    journal.describe({"task": name, "measured": tasks[name].provenance(), "model": self.about()})
            keys = [content_key(self.name, tasks[name].provenance_key, number) for name, number in cells]
            known = [None if journal is None else journal.get(key) for key in keys]
            if journal is not None and any(known):
                kept = sum(map(bool, known))
                print(f"vniah: {kept} of {len(cells)} answers are in {journal.path}", file=sys.stderr)
            answered: list[Answer] = []
            bar = Bar(cells, desc="vniah", unit=" cells")
            for (name, number), key, result in zip(bar, keys, known, strict=True):
                text = result["text"] if result else self._ask(tasks[name], number, answered)
                if journal is not None and not result:
                    doc = tasks[name].rows[number]
                    journal.put(key, {"text": text}, task=name, model=self.name, doc_id=number, doc=doc)
                answered.append(Answer(text=text))
            return answered

    def _ask(self, task: NeedleTask, number: int, answered: Sequence[Answer]) -> str:
        row = task.rows[number]
        where = place_of(task, number)
        visuals = task.visuals(row)
        try:
            # A video is one path; frames as images are several.
            shown = visuals if len(visuals) > 1 else visuals[0] if visuals else None
            text = self.function(shown, task.question(row))
        except Exception as error:
            said = _whole(f"{type(error).__name__}: {error}")
            raise CellError(f"the model {self.name} failed at the cell {where}: {said}", answered) from error
        if not isinstance(text, str):
            raise CellError(
                f"the model {self.name} returned {type(text).__name__} at the cell {where}; expected text", answered
            )
        if _whole(text) != text:
            notice(f"{self.name} answered with half a character at the cell {where}; it is kept as '?'")
        return _whole(text)

    def finished(self) -> None:
        """The results are written: what is asked after this is asked anew."""
        if self.journal is not None:
            remove_journal(self.journal)

    def interrupted(self) -> str:
        """What continues a run that was stopped."""
        return what_continues(self.journal)


def _whole(text: str) -> str:
    """Without half a character (a surrogate alone), of which no file can be written."""
    return text.encode("utf-8", "replace").decode()


def code_of(function: Callable[..., Any]) -> str:
    """A hash of a function's own code with what is bound to it; the same for the same source in another process.

    Covers nested functions, defaults, closures, what a decorator wraps, a partial's arguments and an instance's
    attributes. Of what is bound and is neither a plain value nor code, such as a loaded model, the class alone; of
    lists, dictionaries and sets too, which functions fill while they run.
    """
    return hashlib.sha256(repr(_described(function, 0)).encode()).hexdigest()


def _described(value: Any, depth: int) -> Any:
    """What tells a value apart, its class first."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    code = getattr(value, "__code__", None)
    if depth > _DEEPEST:
        return "..."
    if value is None or isinstance(value, (str, bytes, int, float, complex)):
        return (kind, value)
    if isinstance(value, frozenset):
        return (kind, sorted(repr(_described(one, depth + 1)) for one in value))
    if isinstance(value, tuple):
        parts: Iterable[Any] = value
    elif isinstance(value, CodeType):
        names = (value.co_names, value.co_freevars, value.co_varnames)
        parts = (value.co_code, value.co_consts, *names)
    elif isinstance(value, functools.partial):
        parts = (value.func, value.args, tuple(value.keywords.items()))
    elif isinstance(value, MethodType):
        parts = (value.__func__, value.__self__)
    elif isinstance(code, CodeType):
        bound = (value.__defaults__, tuple((value.__kwdefaults__ or {}).items()), getattr(value, "__wrapped__", None))
        parts = (code, *bound, *map(_content, value.__closure__ or ()))
    elif isinstance(value, type) or not hasattr(value, "__dict__"):
        parts = (getattr(value, "__module__", ""), getattr(value, "__qualname__", ""))
    else:
        # Attributes of a model that somebody loaded are without end; those of a small class of the user's are settings.
        called = getattr(type(value).__dict__.get("__call__"), "__code__", None)
        plain = [(name, one) for name, one in vars(value).items() if isinstance(one, _PLAIN)] if called else []
        parts = (called, tuple(plain))
    return (kind, [_described(one, depth + 1) for one in parts])


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet filled
        return None
