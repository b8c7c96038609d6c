"""Read a run back: from an lmms-eval output folder, a file of logged samples, or a journal.

lmms-eval 0.7.3 writes, under ``--output_path OUT``, ``OUT/<model>/<date>_results.json`` and, with ``--log_samples``,
one ``<date>_samples_<task>.jsonl`` a task. A sample's row holds every metric's dict under the metric's name; ours carry
all that is known of a scored cell. A journal's row holds the document and the leaf's result, from which correctness
follows. All of them are somebody's files: each is read once, and what is wrong in one is named with its line.
"""

from __future__ import annotations

import functools
import glob
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vniah.answers import is_right
from vniah.files import parse_json, read_json
from vniah.notices import notice, printable
from vniah.runs.grid import parse_lengths, parse_range
from vniah.runs.journal import is_journal, is_sound, measured_key, say_damaged
from vniah.runs.run import NOT_SCORED, IntendedGrid, Run, cells_from_scores, cells_table
from vniah.runs.scoring import teacher_forced_match
from vniah.runs.task import MOST_CELLS

if TYPE_CHECKING:
    import pandas

_FILE = re.compile(r"^(?P<date>.+?)_(?:results\.json|samples_(?P<task>.+)\.jsonl)$")
_MODEL_KEYS = ("model", "model_args", "device", "batch_size", "limit", "gen_kwargs")
_MOST_FRAMES = 10**12
JOURNAL, JOURNALS = "journal.jsonl", "journal*.jsonl"
_LOOKED_FOR = f"*_results.json and *_samples_*.jsonl (from lmms-eval --output_path with --log_samples), or {JOURNAL}"


def read_run(path: str | Path, name: str | None = None, *, task: str | None = None, partial: bool = False) -> Run:
    """Read the needle grid of a run.

    Args:
        path: lmms-eval output folder (the newest run in it), its results or samples file, or a journal.
        name: what to call the run; its model's name otherwise.
        task: which task, where the run scored several.
        partial: accept a grid with holes (a run that was stopped, or limited).

    Raises:
        FileNotFoundError: nothing there to read; says what was looked for.
        ValueError: a broken line (with its number), no scored cells, several tasks to choose from, or missing cells.
    """
    runs = read_runs(path, name, task=task)
    grids = [run for run in runs if run.is_grid]
    tasks = ", ".join(run.task for run in grids or runs) or "none"
    if not grids:
        raise ValueError(
            f"{path} has no scored needle cells (tasks in it: {tasks}); run lmms-eval with --log_samples, "
            "or name a folder that has a samples file of vniah or text_niah"
        )
    if len(grids) > 1:
        raise ValueError(f"{path} holds several grids ({tasks}); choose one with --task")
    if not partial:
        grids[0].check_complete(path)
    return grids[0]


def read_runs(path: str | Path, name: str | None = None, *, task: str | None = None) -> list[Run]:
    """Read every task of the newest evaluation at ``path``, needle grids or not, as one run a task; with ``task``, that
    one of the newest evaluation that has it. See ``read_run`` for the arguments and errors."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"no such run: {path}; expected an lmms-eval output folder, a samples file or a journal"
        )
    if path.is_file() and not _FILE.match(path.name):
        return [_read_loose(path, name, task)]
    if path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
        raise PermissionError(f"{path} cannot be read: permission denied")
    found = _evaluations(path)
    if task is not None and found:
        tasks = {one for evaluation in found for one in evaluation.tasks}
        found = [evaluation for evaluation in found if task in evaluation.tasks]
        if not found:
            raise ValueError(f"{path} has no task {task!r}; it has {', '.join(sorted(tasks)) or 'none'}")
    if not found:
        journals = sorted(path.rglob(JOURNALS), key=lambda file: file.stat().st_mtime) if path.is_dir() else []
        if journals:
            return [_read_loose(journals[-1], name, task)]
        raise FileNotFoundError(
            f"nothing to read in {path}; looked for {_LOOKED_FOR}. An evaluation that failed or was stopped leaves "
            "none of them; what it scored is in its journal, which a stopped run names. lmms-eval ends with exit code "
            "0 after a failure: its last lines say what went wrong"
        )
    newest = max(found, key=lambda one: (one.date, max(file.stat().st_mtime for file in one.files)))
    if len(found) > 1:
        notice(f"{path} holds {len(found)} evaluations; the newest is read: {newest.files[0]}")
    only = path if path in newest.samples.values() else None
    return [
        _read_task(newest, one, name)
        for one in newest.tasks
        if task in (None, one) and only in (None, newest.samples.get(one)) and not newest.is_bare_group(one)
    ]


@dataclass
class _Evaluation:
    """The files of one evaluation, which share a folder and a date."""

    folder: Path
    date: str
    results: Path | None = None
    samples: dict[str, Path] = field(default_factory=dict)

    @property
    def files(self) -> list[Path]:
        return [self.results] if self.results else list(self.samples.values())

    @functools.cached_property
    def told(self) -> Mapping[str, Any]:
        """The content of results.json."""
        if self.results is None:
            return {}
        try:
            whole = read_json(self.results)
        except ValueError as error:
            raise ValueError(f"{error}; the file is damaged") from None
        if not isinstance(whole, dict):
            raise ValueError(f"{self.results}: expected a JSON object, got {type(whole).__name__}")
        if not isinstance(whole.get("results", {}), dict):
            raise ValueError(
                f"{self.results}: expected 'results' to be an object of tasks, got {type(whole['results']).__name__}; "
                "these are no results of lmms-eval"
            )
        return whole

    @property
    def tasks(self) -> list[str]:
        """Every task it scored, logged or not."""
        return list(dict.fromkeys((*self.samples, *self.told.get("results", {}))))

    def values(self, task: str) -> Mapping[str, Any]:
        """The metrics of a task, lmms-eval's ``,filter`` cut off their names."""
        return {key.partition(",")[0]: value for key, value in _object(self.told, "results", task).items()}

    def provenance(self, task: str) -> Mapping[str, Any]:
        """What a needle task says at its end of what it measured, its warnings included."""
        told = (value for name, value in self.values(task).items() if name.endswith("_provenance"))
        return _object(next(told, None))

    def is_bare_group(self, task: str) -> bool:
        """Whether it is a group without figures of its own."""
        group = task not in self.samples and task in _object(self.told, "group_subtasks")
        return group and not _scalars(self.values(task))


def _evaluations(path: Path) -> list[_Evaluation]:
    """The evaluations under a folder, or the one that a file belongs to."""
    of_file = _FILE.match(path.name) if path.is_file() else None
    found: dict[tuple[Path, str], _Evaluation] = {}
    for file in sorted(path.rglob("*.json*") if of_file is None else path.parent.iterdir()):
        match = _FILE.match(file.name)
        if match is None or not file.is_file() or (of_file is not None and match["date"] != of_file["date"]):
            continue
        evaluation = found.setdefault((file.parent, match["date"]), _Evaluation(file.parent, match["date"]))
        if match["task"]:
            evaluation.samples[match["task"]] = file
        else:
            evaluation.results = file
    return list(found.values())


def _read_task(evaluation: _Evaluation, task: str, name: str | None) -> Run:
    """One task of an evaluation. Without logged samples a needle grid has unnamed cells, any other task none."""
    told, values = evaluation.told, evaluation.values(task)
    logged = task in evaluation.samples
    rows = _read_cells([evaluation.samples[task]], last_wins=False)[0] if logged else []
    return _run(
        name,
        str(told.get("model_name") or _object(told, "config").get("model") or evaluation.folder.name),
        _settings(evaluation, task),
        in_tokens=_in_tokens(rows) or any(key.startswith("text_niah_") for key in values),
        task=task,
        cells=cells_table(rows) if logged else _unnamed_cells(evaluation, task),
        metrics=_scalars(values),
        unscored=tuple(key for key, value in values.items() if value == NOT_SCORED),
    )


def _read_loose(path: Path, name: str | None, task: str | None) -> Run:
    """A journal, or a samples file under another name: rows and nothing around them."""
    if path.suffix != ".jsonl" and not is_journal(path):
        raise ValueError(f"cannot read a run from {path.name}; expected {_LOOKED_FOR}")
    # While several processes work, each writes a journal of its own; the first is whole at the end.
    ranks = [file for file in path.parent.glob(f"{glob.escape(path.name)}.rank*") if file.suffix != ".lock"]
    rows, parts = _read_cells([path, *sorted(ranks)], last_wins=True)
    tasks, models = ({str(row[key]) for row in rows if row[key] is not None} for key in ("task", "model"))
    if task is not None and tasks:
        rows = [row for row in rows if row["task"] is None or str(row["task"]) == task]
        if not rows:
            raise ValueError(f"{path} has no task {task!r}; it has {', '.join(sorted(tasks))}")
    elif len(tasks) > 1:
        raise ValueError(f"{path} holds several tasks ({', '.join(sorted(tasks))}); choose one with --task")
    task = task or next(iter(tasks), "vniah")
    # Each is what the run of some lines was to measure, as far as the journal says it.
    runs = parts[task]
    if len(runs) > 1:
        raise ValueError(
            f"{path} holds runs of {task} that measured different things (grid, haystack, needles or versions); read "
            "the finished run's samples file, or give each its own journal=PATH"
        )
    header = next(iter(runs.values()), {})
    model = models.pop() if len(models) == 1 else path.resolve().parent.name
    sections = {"model": header.get("model"), "task": header.get("measured"), "files": {"journal": str(path)}}
    return _run(name, model, sections, in_tokens=_in_tokens(rows), task=task, cells=cells_table(rows))


def _run(name: str | None, model: str, sections: Mapping[str, Any], *, in_tokens: bool, **about: Any) -> Run:
    """A run with its settings, empty sections left out, its intended grid and its unit: by what the run says that it
    measured, else by its cells and metrics; not by a task's name."""
    settings = {title: _printable(section) for title, section in sections.items() if section}
    measured = _object(settings.get("task"))
    if "lengths" in measured or "frames" in measured:
        in_tokens = "lengths" in measured
    unit: Literal["frames", "tokens"] = "tokens" if in_tokens else "frames"
    shown = name or Path(model).name
    return Run(name=shown, model=model, settings=settings, intended=_intended(measured), unit=unit, **about)


def _in_tokens(rows: Sequence[Mapping[str, Any]]) -> bool:
    return any(row["unit"] == "tokens" for row in rows)


def _intended(told: Mapping[str, Any]) -> IntendedGrid | None:
    """The grid that a run was to measure, if it says so whole."""
    lengths, depths, per_place = told.get("frames", told.get("lengths")), told.get("depths"), told.get("per_place")
    if not isinstance(lengths, str) or not isinstance(depths, str) or not isinstance(per_place, int):
        return None
    frames = parse_range(lengths, "frames") if "frames" in told else parse_lengths(lengths)
    places = parse_range(depths, "depths")
    if len(frames) * len(places) > MOST_CELLS:
        raise ValueError(f"a grid of {lengths!r} by {depths!r} has more than {MOST_CELLS:,} cells, which no run has")
    controls = told["controls"] if isinstance(told.get("controls"), int) else 0
    return IntendedGrid(frames=frames, depths=places, per_place=per_place, controls=controls)


def _unnamed_cells(evaluation: _Evaluation, task: str) -> pandas.DataFrame:
    """Cells from the ``*_grid`` metric, ``{num_frames: {depth or "control": score}}``; none without it.

    lmms-eval notes how many documents there were, hence over how many needles each score is a mean.
    """
    grids = [_object(value) for name, value in evaluation.values(task).items() if name.endswith("_grid")]
    try:
        scores = {
            (int(frames), None if depth == "control" else int(depth)): float(score)
            for grid in grids
            for frames, column in grid.items()
            for depth, score in _object(column).items()
        }
    except (TypeError, ValueError) as error:
        raise ValueError(f"the grid of {task} is no table of scores by length and depth ({error})") from None
    documents = _object(evaluation.told, "n-samples", task).get("effective")
    if not scores or not isinstance(documents, int):
        return cells_table(())
    if documents > MOST_CELLS:
        raise ValueError(f"{task} is said to have {documents:,} cells, and no run has more than {MOST_CELLS:,}")
    told = {**_object(evaluation.told, "configs", task, "metadata"), **evaluation.provenance(task)}
    cells, controls, per_place = (told.get(key) for key in ("cells", "controls", "per_place"))
    if not (isinstance(cells, int) and isinstance(controls, int) and isinstance(per_place, int)):
        per_place, rest = divmod(documents, len(scores))
        return cells_table(()) if rest else cells_from_scores(scores, per_place)
    lengths = len({frames for frames, _ in scores})
    placed = sum(depth is not None for _, depth in scores)
    # Of a part of the grid nobody knows over how many needles each mean was taken.
    if documents != cells + controls or controls < 0 or controls % lengths or per_place * placed != cells:
        return cells_table(())
    return cells_from_scores(scores, per_place, controls // lengths)


def _object(value: Any, *keys: str) -> Mapping[str, Any]:
    """The JSON object that ``keys`` lead to; an empty one where something else is on the way."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _scalars(values: Mapping[str, Any]) -> dict[str, float]:
    """Scalar metrics by name; a dict of scalars becomes ``name/key``."""
    parts: dict[str, Any] = {}
    for name, value in values.items():
        if (
            "_stderr" not in name
            and not name.endswith(("_grid", "_intervals", "_provenance"))
            and name not in ("alias", "samples")
        ):
            parts |= {f"{name}/{key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
    numbers = {key: one for key, one in parts.items() if isinstance(one, (int, float)) and not isinstance(one, bool)}
    return {key: float(one) for key, one in numbers.items() if math.isfinite(one)}


def _settings(evaluation: _Evaluation, task: str) -> dict[str, Any]:
    """What the page of a run shows: model, task, versions, timing, files."""
    whole, told = evaluation.told, dict(evaluation.provenance(task))
    identity, packages = _object(told.pop("model", {})), _object(told.pop("versions", {}))
    profile = _object(told.pop("profile", {}))
    sections = {
        "model": {**{key: _object(whole, "config").get(key) for key in _MODEL_KEYS}, **identity},
        "task": {**_object(whole, "configs", task, "metadata"), **told},
        "versions": {
            **packages,
            "lmms_eval": whole.get("lmms_eval_version"),
            "git_hash": whole.get("git_hash"),
            "task": _object(whole, "versions").get(task),
        },
        "profile": profile,
        "timing": {
            "date": whole.get("date") or evaluation.date,
            "seconds": whole.get("total_evaluation_time_seconds"),
            "throughput": whole.get("throughput"),
        },
        "files": {
            "results": str(evaluation.results) if evaluation.results else None,
            "samples": str(evaluation.samples[task]) if task in evaluation.samples else None,
        },
    }
    return {
        title: {key: value for key, value in section.items() if value not in (None, "", {}, [])}
        for title, section in sections.items()
        if section or title != "profile"
    }


def _printable(value: Any) -> Any:
    """A value of a file with every text in it printable: notes, titles and tables quote them."""
    if isinstance(value, Mapping):
        return {printable(key): _printable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_printable(one) for one in value]
    return printable(value) if isinstance(value, str) else value


# What runs measured, by the hash of it, by task.
_Parts = dict[str, dict[str, Mapping[str, Any]]]


def _read_cells(paths: Sequence[Path], *, last_wins: bool) -> tuple[list[dict[str, Any]], _Parts]:
    """Every scored cell of samples files or journals in file order, as a row for ``cells_table`` (see ``_cell``), and
    what journals say of their runs. Of several files the first goes on in the others.

    A cell that was scored twice is one cell when both scores agree; when they do not, the later one
    counts in a journal (``last_wins``), and in a samples file it is an error. A journal may hold runs of several
    models, settings or haystacks, since its keys tell them apart; one grid is not made of them.

    Raises:
        ValueError: naming the file and line: not JSON, not a scored cell's types, scored twice, of another run.
    """
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    content: dict[tuple[str, ...], str] = {}
    settings: set[str] = set()
    parts: _Parts = defaultdict(dict)
    for where, row in (row for path in paths for row in _rows(path, forgive_last=last_wins)):
        if run := _object(row, "run"):
            parts[str(run.get("task"))][measured_key(run)] = run
        elif "key" in row and "of" in row:
            parts[str(row.get("task"))].setdefault(str(row["of"]), {})
        scored = _from_journal(row, where) or _scored_dict(row)
        if scored is None:
            continue
        cell = _cell(scored, row, where)
        named = ("num_frames", "depth_percent", "needle", "task", "sample", "seed")
        key = tuple(str(cell[name]) for name in named)
        settings.update({str(row["settings"])} if "settings" in row else ())
        if len(settings) > 1 or content.setdefault(key, str(row.get("key"))) != str(row.get("key")):
            raise ValueError(
                f"{where}: lines before it are of another model, haystack or setting, and a journal of "
                "several runs is no one's grid; read the finished run's samples file, or give each its own journal=PATH"
            )
        if key in found and not last_wins and found[key]["correct"] != cell["correct"]:
            raise ValueError(
                f"{where}: a second, different score for {cell['num_frames']} frames, "
                f"depth {cell['depth_percent']}, needle {cell['needle']!r}"
            )
        found[key] = cell
    return list(found.values()), parts


def _rows(path: Path, *, forgive_last: bool) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(file and line, row). ``forgive_last``: a last line that was cut off while being written is skipped.

    Lines of a journal that do not match their checksum are left out, which is said.
    """
    damaged: list[int] = []
    checked = False
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}, line {number}"
            if not line.strip():
                continue
            sound = is_sound(line)
            checked = checked or sound is True
            if sound is False or (checked and sound is None):
                if line.endswith(b"\n"):
                    damaged.append(number)
                continue
            try:
                row = parse_json(line, where)
            except ValueError as error:
                if forgive_last and not line.endswith(b"\n"):
                    return
                raise ValueError(f"{error}; the file is damaged") from None
            if not isinstance(row, dict):
                raise ValueError(f"{where}: expected a JSON object, got {type(row).__name__}")
            yield where, row
    say_damaged(path, damaged, "they are left out; a rerun of the same command computes what they held again")


def _scored_dict(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The part of a row that describes a scored cell: the row itself or one of its values, the fullest."""
    described = (one for one in (row, *row.values()) if isinstance(one, Mapping) and "correct" in one)
    return max((one for one in described if "num_frames" in one or "context_length" in one), key=len, default=None)


def _from_journal(row: Mapping[str, Any], where: str) -> Mapping[str, Any] | None:
    """What a journal's row says of a cell, its correctness worked out; ``None`` for any other row."""
    doc, result = row.get("doc"), row.get("result")
    if not isinstance(doc, Mapping) or not isinstance(result, Mapping) or "needle" not in doc:
        return None
    text, answer_ids = str(result.get("text", "")), result.get("answer_ids") or []
    if isinstance(result.get("is_greedy"), bool):
        correct = result["is_greedy"]
    elif answer_ids:
        correct = teacher_forced_match(result.get("predicted_ids") or [], answer_ids)
    elif "choice" in doc:
        correct = is_right(text, str(doc.get("answer", "")), str(doc.get("question", "")))
    else:
        raise ValueError(
            f"{where}: a free answer of {row.get('task', 'a task')}, whose correctness the journal does not hold; "
            "read the samples file of the finished run instead"
        )
    return {**doc, **result, "predicted": text, "correct": correct}


def _cell(scored: Mapping[str, Any], row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A scored cell, its parts checked, as a row for ``cells_table``; and what tells it from others."""
    frames = scored.get("num_frames", scored.get("context_length"))
    depth, control = scored.get("depth_percent"), bool(scored.get("control", False))
    if not isinstance(frames, int) or isinstance(frames, bool) or not 1 <= frames <= _MOST_FRAMES:
        raise ValueError(f"{where}: num_frames must be a whole number from 1 to {_MOST_FRAMES:,}, got {frames!r}")
    if isinstance(depth, float) and depth.is_integer():
        depth = int(depth)
    if control:
        depth = None  # a journal's document has -1 there
    elif not isinstance(depth, int) or not 0 <= depth <= 100:
        raise ValueError(f"{where}: depth_percent must be a whole number from 0 to 100, got {depth!r}")
    if scored["correct"] not in (True, False):
        raise ValueError(f"{where}: correct must be true or false, got {scored['correct']!r}")
    index = None if control else scored.get("needle_index")
    try:
        if index is not None and abs(index := int(index)) > _MOST_FRAMES:
            raise ValueError(f"an index of {index}")
        numbers = {
            "needle_index": index,
            "predicted_ids": tuple(int(one) for one in scored.get("predicted_ids") or ()),
            "answer_ids": tuple(int(one) for one in scored.get("answer_ids") or ()),
            "answer_logprobs": tuple(float(one) for one in scored.get("answer_logprobs") or ()),
        }
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{where}: needle_index, ids or log-probabilities are no numbers ({error})") from None
    outside = {key: value for key, value in row.items() if isinstance(value, str)}
    return {
        **numbers,
        "num_frames": frames,
        "depth_percent": depth,
        "needle": str(scored.get("needle", "")),
        "correct": bool(scored["correct"]),
        "predicted": str(scored.get("predicted", "")),
        "answer": str(scored.get("answer", row.get("target", ""))),
        "question": str(scored.get("question", outside.get("input", ""))),
        "mistake": str(scored["mistake"]) if scored.get("distractors") and "mistake" in scored else None,
        "unit": "frames" if "num_frames" in scored else "tokens",
        "task": scored.get("task", outside.get("task")),
        "model": scored.get("model", outside.get("model")),
        "sample": scored.get("sample"),
        "seed": seed if isinstance(seed := scored.get("seed"), int) else 0,
        **({"draw": scored["draw"]} if "draw" in scored else {}),
    }
