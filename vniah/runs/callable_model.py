"""A function of the user's own as a model: it is shown each cell's mp4 and answers freely."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import CellType, CodeType, MethodType
from typing import Any

from vniah.notices import notice
from vniah.runs.journal import Journal, content_key
from vniah.runs.task import Answer, NeedleTask

Answerer = Callable[[Any, str], str]
_PLAIN = (str, bytes, int, float, complex, tuple, frozenset, type(None))
_DEEPEST = 8


class CellError(ValueError):
    """A cell that the model could not answer.

    Attributes:
        answered: what was answered before it, in the order of the cells.
    """

    def __init__(self, message: str, answered: Sequence[Answer]) -> None:
        super().__init__(message)
        self.answered = tuple(answered)


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
        """Raise for a task that a free answer cannot be scored on.

        Raises:
            ValueError: naming the task and the one to use; or several processes, of which each would ask.
        """
        if int(os.environ.get("WORLD_SIZE") or 1) > 1:
            raise ValueError("a function answers in one process; run this without torchrun, or name a model")
        for task in tasks:
            if task.scoring != "generated":
                raise ValueError(
                    f"{task.name} is scored by teacher forcing, for which a function of text is no model; use "
                    f"{'vniah_generate' if task.unit == 'frames' else 'text_niah_generate'}"
                )

    def answers(self, tasks: Mapping[str, NeedleTask], cells: Sequence[tuple[str, int]]) -> list[Answer]:
        """Answer cells in order.

        Raises:
            CellError: the function raises, or returns something else than text.
        """
        from tqdm import tqdm

        names = list(dict.fromkeys(name for name, _ in cells))
        with contextlib.ExitStack() as stack:
            journal = None
            if self.folder is not None:
                code = content_key(self.name, _code_of(self.function), [tasks[name].provenance_key for name in names])
                self.journal = self.folder / f"journal-{code[:12]}.jsonl"
                journal = stack.enter_context(Journal(self.journal))
                for name in names:
                    journal.describe({"task": name, "measured": tasks[name].provenance(), "model": self.about()})
            keys = [content_key(self.name, tasks[name].provenance_key, number) for name, number in cells]
            known = [None if journal is None else journal.get(key) for key in keys]
            if journal is not None and any(known):
                print(
                    f"vniah: {len(list(filter(None, known)))} of {len(cells)} answers are in {journal.path}",
                    file=sys.stderr,
                )
            answered: list[Answer] = []
            bar = tqdm(cells, desc="vniah", unit=" cells", file=sys.stderr)
            for (name, number), key, result in zip(bar, keys, known, strict=True):
                text = result["text"] if result else self._ask(tasks[name], number, answered)
                if journal is not None and not result:
                    doc = tasks[name].rows[number]
                    journal.put(key, {"text": text}, task=name, model=self.name, doc_id=number, doc=doc)
                answered.append(Answer(text=text))
            return answered

    def _ask(self, task: NeedleTask, number: int, answered: Sequence[Answer]) -> str:
        row = task.rows[number]
        where = ", ".join(f"{key} {row[key]}" for key in (task.length_key, "needle"))
        where = f"{task.name}, {where}, {'no needle' if row['control'] else 'depth ' + str(row['depth_percent'])}"
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
            self.journal.unlink(missing_ok=True)
            self.journal.with_name(f"{self.journal.name}.lock").unlink(missing_ok=True)

    def interrupted(self) -> str:
        """What continues a run that was stopped."""
        if self.journal is None:
            return "nothing of it is kept; give an output folder, and the same call continues"
        return f"what was answered is kept in {self.journal}; the same call continues"


def _whole(text: str) -> str:
    """Without half a character (a surrogate alone), of which no file can be written."""
    return text.encode("utf-8", "replace").decode()


def _code_of(function: Answerer) -> str:
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
