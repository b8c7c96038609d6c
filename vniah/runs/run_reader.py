"""Read a run back: from an lmms-eval output folder, a file of logged samples, or a journal.

lmms-eval 0.7.3 writes, under ``--output_path OUT``, ``OUT/<model>/<date>_results.json`` and, with
``--log_samples``, one ``<date>_samples_<task>.jsonl`` a task.
"""

from __future__ import annotations

import glob
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vniah.files import parse_json, read_json
from vniah.notices import notice, printable
from vniah.runs.grid import parse_lengths, parse_range
from vniah.runs.journal import is_journal, is_sound, measured_key
from vniah.runs.results import NOT_SCORED, IntendedGrid, Run, ScoredCell, cells_from_scores
from vniah.runs.scored_rows import read_cells
from vniah.runs.task import MOST_CELLS

# A cell's line in a journal, which says what it is part of behind its key.
_PART_OF = re.compile(rb'\{"key": "[^"]*", "of": "([0-9a-f]+)", ')
_RESULTS = re.compile(r"^(?P<date>.+)_results\.json$")
_SAMPLES = re.compile(r"^(?P<date>.+?)_samples_(?P<task>.+)\.jsonl$")
_MODEL_KEYS = ("model", "model_args", "device", "batch_size", "limit", "gen_kwargs")
JOURNAL, JOURNALS = "journal.jsonl", "journal*.jsonl"
_LOOKED_FOR = f"*_results.json and *_samples_*.jsonl (from lmms-eval --output_path with --log_samples), or {JOURNAL}"


@dataclass(slots=True)
class _Evaluation:
    """The files of one evaluation: they share a folder and a date."""

    folder: Path
    date: str
    results: Path | None
    samples: dict[str, Path]

    @property
    def age(self) -> tuple[str, float]:
        files = [self.results] if self.results else list(self.samples.values())
        return self.date, max(file.stat().st_mtime for file in files)

    def tasks(self) -> list[str]:
        """Every task it scored, logged or not."""
        known = dict.fromkeys(self.samples)
        if self.results:
            known.update(dict.fromkeys(_load_json(self.results).get("results", {})))
        return list(known)


def read_run(
    path: str | Path,
    name: str | None = None,
    *,
    task: str | None = None,
    partial: bool = False,
) -> Run:
    """Read the needle grid of a run.

    Args:
        path: lmms-eval output folder (the newest run in it), its results or samples file, or a journal.
        name: what to call the run; its model's name otherwise.
        task: which task, where the run scored several.
        partial: accept a grid with holes (a run that was stopped, or limited).

    Raises:
        FileNotFoundError: no such path, or nothing there to read; says what was looked for.
        ValueError: a broken line (with its number), no scored cells, several tasks to choose from, or
            cells that are missing from the grid.
    """
    runs = read_runs(path, name, task=task)
    with_cells = [run for run in runs if run.placed]
    if not with_cells:
        tasks = ", ".join(run.task for run in runs) or "none"
        raise ValueError(
            f"{path} has no scored needle cells (tasks in it: {tasks}); run lmms-eval with --log_samples, "
            "or name a folder that has a samples file of vniah or text_niah"
        )
    if len(with_cells) > 1:
        tasks = ", ".join(run.task for run in with_cells)
        raise ValueError(f"{path} holds several grids ({tasks}); choose one with --task")
    (run,) = with_cells
    if not partial:
        check_complete(run, path)
    return run


def check_complete(run: Run, path: str | Path) -> None:
    """Raise unless every cell of the run's grid was scored over equally many needles.

    Raises:
        ValueError: says how many cells are missing, and where the first is.
    """
    missing = run.missing()
    wanted = run.intended.controls if run.intended is not None else 0
    controls = len(run.scored) - len(run.placed)
    if not missing and controls < wanted:
        raise ValueError(
            f"{path}: {controls} of {wanted} controls are scored; let the run finish, or pass --partial to use what is "
            "there (in Python: partial=True)"
        )
    if missing:
        (frames, depth), count = next(iter(missing)), sum(missing.values())
        whole = count + len(run.placed)
        raise ValueError(
            f"{path}: {len(run.placed)} of {whole} cells are scored and {count} of {whole} cells of the grid are "
            f"missing, the first at {frames} {run.unit}, depth {depth} %; let the run finish, or pass --partial to use "
            "what is there (in Python: partial=True)"
        )


def read_runs(path: str | Path, name: str | None = None, *, task: str | None = None) -> list[Run]:
    """Read every task of the newest evaluation at ``path``, needle grids or not, as one run a task.

    With ``task``, of the newest evaluation that has that task. See ``read_run`` for the arguments.

    Raises:
        FileNotFoundError, ValueError: see ``read_run``.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"no such run: {path}; expected an lmms-eval output folder, a samples file or a journal"
        )
    if path.is_file() and not _RESULTS.match(path.name) and not _SAMPLES.match(path.name):
        return [_read_loose(path, name, task)]
    if path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
        raise PermissionError(f"{path} cannot be read: permission denied")
    found = _evaluations(path)
    if task is not None and found:
        tasks = {one for evaluation in found for one in evaluation.tasks()}
        if task not in tasks:
            raise ValueError(f"{path} has no task {task!r}; it has {', '.join(sorted(tasks)) or 'none'}")
        found = [evaluation for evaluation in found if task in evaluation.tasks()]
    if not found:
        journals = sorted(path.rglob(JOURNALS), key=lambda file: file.stat().st_mtime) if path.is_dir() else []
        if journals:
            return [_read_loose(journals[-1], name, task)]
        raise FileNotFoundError(
            f"nothing to read in {path}; looked for {_LOOKED_FOR}. An evaluation that failed or was stopped leaves "
            "none of them; what it scored is in its journal, which a stopped run names. lmms-eval ends with exit code "
            "0 after a failure: its last lines say what went wrong"
        )
    newest = max(found, key=lambda evaluation: evaluation.age)
    if len(found) > 1:
        file = newest.results or next(iter(newest.samples.values()))
        notice(f"{path} holds {len(found)} evaluations; the newest is read: {file}")
    return _read_evaluation(newest, name, task, only=path if _SAMPLES.match(path.name) else None)


def _evaluations(path: Path) -> list[_Evaluation]:
    """The evaluations under a folder, or the one that a file belongs to."""
    if path.is_file():
        match = _RESULTS.match(path.name) or _SAMPLES.match(path.name)
        assert match is not None, "the caller checked the name"
        wanted, files = match["date"], list(path.parent.iterdir())
    else:
        wanted, files = None, sorted(path.rglob("*.json*"))
    found: dict[tuple[Path, str], _Evaluation] = {}
    for file in files:
        results, samples = _RESULTS.match(file.name), _SAMPLES.match(file.name)
        match = samples or results
        if match is None or not file.is_file() or (wanted is not None and match["date"] != wanted):
            continue
        key = (file.parent, match["date"])
        evaluation = found.setdefault(key, _Evaluation(file.parent, match["date"], None, {}))
        if samples:
            evaluation.samples[samples["task"]] = file
        else:
            evaluation.results = file
    return list(found.values())


def _read_evaluation(evaluation: _Evaluation, name: str | None, task: str | None, only: Path | None) -> list[Run]:
    """One run a task. Without logged samples a needle grid has unnamed cells, any other task none."""
    whole = _load_json(evaluation.results) if evaluation.results else {}
    tasks = evaluation.tasks()
    if only is not None:
        tasks = [one for one in tasks if evaluation.samples.get(one) == only]
    runs = []
    for one in tasks:
        if task is not None and one != task:
            continue
        samples = evaluation.samples.get(one)
        values = _mapping(whole.get("results")).get(one)
        if samples is None and one in _mapping(whole.get("group_subtasks")) and not _metrics(values):
            continue  # a group without figures of its own
        model = str(whole.get("model_name") or _mapping(whole.get("config")).get("model") or evaluation.folder.name)
        settings = _settings(whole, one, evaluation)
        scored = read_cells(samples, last_wins=False) if samples else _grid_cells(whole, one)
        runs.append(
            Run(
                name=name or Path(model).name,
                task=one,
                model=model,
                scored=scored,
                metrics=_metrics(values),
                unscored=_unscored(values),
                settings=settings,
                intended=_intended(settings.get("task", {})),
                unit=_unit(settings.get("task", {}), scored, values),
            )
        )
    return runs


def _read_loose(path: Path, name: str | None, task: str | None) -> Run:
    """A journal, or a samples file under another name: rows and nothing around them."""
    if path.suffix != ".jsonl" and not is_journal(path):
        raise ValueError(f"cannot read a run from {path.name}; expected {_LOOKED_FOR}")
    # While several processes work, each writes a journal of its own; the first is whole at the end.
    ranks = [file for file in path.parent.glob(f"{glob.escape(path.name)}.rank*") if file.suffix != ".lock"]
    cells = read_cells(path, last_wins=True, also=sorted(ranks))
    told = {str(cell.extra[key]) for cell in cells for key in ("task",) if key in cell.extra}
    models = {str(cell.extra[key]) for cell in cells for key in ("model",) if key in cell.extra}
    if task is not None and told:
        cells = tuple(cell for cell in cells if str(cell.extra.get("task", task)) == task)
        if not cells:
            raise ValueError(f"{path} has no task {task!r}; it has {', '.join(sorted(told))}")
        told = {task}
    elif len(told) > 1:
        raise ValueError(f"{path} holds several tasks ({', '.join(sorted(told))}); choose one with --task")
    model = models.pop() if len(models) == 1 else path.resolve().parent.name
    task = task or (told.pop() if told else "vniah")
    header = _header([path, *ranks], task, path)
    sections = {"model": header.get("model"), "task": header.get("measured"), "files": {"journal": str(path)}}
    return Run(
        name=name or Path(model).name,
        task=task,
        model=model,
        scored=cells,
        settings={title: _printable(section) for title, section in sections.items() if section},
        intended=_intended(header.get("measured")),
        unit=_unit(header.get("measured"), cells),
    )


def _unit(measured: Any, cells: Iterable[ScoredCell], metrics: Any = None) -> Literal["frames", "tokens"]:
    """What lengths count, by what the run says it measured, else by its cells or its metrics; not by a task's name."""
    told = _mapping(measured)
    if "lengths" in told or "frames" in told:
        return "tokens" if "lengths" in told else "frames"
    in_tokens = any(cell.extra.get("unit") == "tokens" for cell in cells)
    return "tokens" if in_tokens or any(key.startswith("text_niah_") for key in _mapping(metrics)) else "frames"


def _header(journals: Iterable[Path], task: str, named: Path) -> Mapping[str, Any]:
    """What a journal says that the lines of ``task`` are part of; nothing in journals that say nothing.

    Raises:
        ValueError: they are of runs that were to measure different things, and one grid is not made of them.
    """
    found: Mapping[str, Any] = {}
    parts_of: set[str] = set()
    for path in journals:
        with path.open("rb") as file:
            for line in file:
                if is_sound(line) is False:
                    continue
                if b'"run": {' in line and (told := _mapping(_row(line).get("run"))).get("task") == task:
                    parts_of.add(measured_key(told))
                    found = told
                elif (part := _PART_OF.match(line)) and json.dumps(task).encode() in line:
                    parts_of.add(part[1].decode())
    if len(parts_of) > 1:
        raise ValueError(
            f"{named} holds runs of {task} that measured different things (grid, haystack, needles or versions); read "
            "the finished run's samples file, or give each its own journal=PATH"
        )
    return found


def _row(line: bytes) -> Mapping[str, Any]:
    try:
        return _mapping(parse_json(line, "a journal line"))
    except ValueError:
        return {}


def _intended(measured: Any) -> IntendedGrid | None:
    """The grid that a run was to measure, if it says so whole."""
    told = _mapping(measured)
    lengths, depths, per_place = told.get("frames", told.get("lengths")), told.get("depths"), told.get("per_place")
    if not isinstance(lengths, str) or not isinstance(depths, str) or not isinstance(per_place, int):
        return None
    frames = parse_range(lengths, "frames") if "frames" in told else parse_lengths(lengths)
    places = parse_range(depths, "depths")
    if len(frames) * len(places) > MOST_CELLS:
        raise ValueError(f"a grid of {lengths!r} by {depths!r} has more than {MOST_CELLS:,} cells, which no run has")
    controls = told.get("controls")
    return IntendedGrid(
        frames=frames,
        depths=places,
        per_place=per_place,
        controls=controls if isinstance(controls, int) else 0,
    )


def _grid_cells(whole: Mapping[str, Any], task: str) -> tuple[ScoredCell, ...]:
    """Unnamed cells from the ``*_grid`` metric, ``{num_frames: {depth or "control": score}}``; none without it.

    lmms-eval notes how many documents there were, hence over how many needles each score is a mean.
    """
    metrics = _mapping(_mapping(whole.get("results")).get(task))
    grids = [_mapping(value) for key, value in metrics.items() if key.partition(",")[0].endswith("_grid")]
    try:
        scores = {
            (int(frames), None if depth == "control" else int(depth)): float(score)
            for grid in grids
            for frames, column in grid.items()
            for depth, score in _mapping(column).items()
        }
    except (TypeError, ValueError) as error:
        raise ValueError(f"the grid of {task} is no table of scores by length and depth ({error})") from None
    documents = _mapping(_mapping(whole.get("n-samples")).get(task)).get("effective")
    if not scores or not isinstance(documents, int):
        return ()
    if documents > MOST_CELLS:
        raise ValueError(f"{task} is said to have {documents:,} cells, and no run has more than {MOST_CELLS:,}")
    told = {**_mapping(_mapping(_mapping(whole.get("configs")).get(task)).get("metadata")), **_provenance(whole, task)}
    cells, controls, per_place = (told.get(key) for key in ("cells", "controls", "per_place"))
    if isinstance(cells, int) and isinstance(controls, int) and isinstance(per_place, int):
        lengths = len({frames for frames, _ in scores})
        # Of a part of the grid nobody knows over how many needles each mean was taken.
        placed = {place: score for place, score in scores.items() if place[1] is not None}
        if documents != cells + controls or controls < 0 or controls % lengths or per_place * len(placed) != cells:
            return ()
        bare = {place: score for place, score in scores.items() if place[1] is None}
        return cells_from_scores(placed, per_place) + cells_from_scores(bare, controls // lengths)
    if documents % len(scores):
        return ()
    return cells_from_scores(scores, documents // len(scores))


def _load_json(path: Path) -> dict[str, Any]:
    try:
        whole = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}; the file is damaged") from None
    if not isinstance(whole, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(whole).__name__}")
    if not isinstance(whole.get("results", {}), dict):
        raise ValueError(
            f"{path}: expected 'results' to be an object of tasks, got {type(whole['results']).__name__}; these are no "
            "results of lmms-eval"
        )
    return whole


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _metrics(values: Any) -> dict[str, float]:
    """Scalar metrics by name, lmms-eval's ``,filter`` cut off; a dict of scalars becomes ``name/key``."""
    found: dict[str, float] = {}
    for key, value in _mapping(values).items():
        name = key.partition(",")[0]
        if "_stderr" in name or name.endswith(("_grid", "_provenance")) or name in {"alias", "samples"}:
            continue
        parts: Iterable[tuple[str, Any]] = (
            ((f"{name}/{part}", one) for part, one in value.items()) if isinstance(value, Mapping) else ((name, value),)
        )
        for full, one in parts:
            if isinstance(one, (int, float)) and not isinstance(one, bool) and math.isfinite(one):
                found[full] = float(one)
    return found


def _unscored(values: Any) -> tuple[str, ...]:
    """The metrics that say "not scored"."""
    return tuple(key.partition(",")[0] for key, value in _mapping(values).items() if value == NOT_SCORED)


def _provenance(whole: Mapping[str, Any], task: str) -> Mapping[str, Any]:
    """What a needle task says at its end of what it measured, its warnings included."""
    metrics = _mapping(_mapping(whole.get("results")).get(task))
    return next(
        (_mapping(value) for key, value in metrics.items() if key.partition(",")[0].endswith("_provenance")), {}
    )


def _settings(whole: Mapping[str, Any], task: str, evaluation: _Evaluation) -> dict[str, Any]:
    """What the page of a run shows: model, task, versions, timing, files; empty sections left out."""
    config, task_config = _mapping(whole.get("config")), _mapping(_mapping(whole.get("configs")).get(task))
    told = dict(_provenance(whole, task))
    identity, packages = _mapping(told.pop("model", {})), _mapping(told.pop("versions", {}))
    sections = {
        "model": {**{key: config.get(key) for key in _MODEL_KEYS}, **identity},
        "task": {**_mapping(task_config.get("metadata")), **told},
        "versions": {
            **packages,
            "lmms_eval": whole.get("lmms_eval_version"),
            "git_hash": whole.get("git_hash"),
            "task": _mapping(whole.get("versions")).get(task),
        },
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
    kept = {
        title: {key: value for key, value in section.items() if value not in (None, "", {}, [])}
        for title, section in sections.items()
    }
    return {title: _printable(section) for title, section in kept.items() if section}


def _printable(value: Any) -> Any:
    """A value of a file with every text in it printable: notes, titles and tables quote them."""
    if isinstance(value, Mapping):
        return {printable(key): _printable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_printable(one) for one in value]
    return printable(value) if isinstance(value, str) else value


def model_args(run: Run) -> dict[str, str]:
    """The run's ``--model_args`` as a dict of strings; empty where they are not known."""
    value = _mapping(run.settings.get("model")).get("model_args")
    if isinstance(value, Mapping):
        return {str(key): str(one) for key, one in value.items()}
    pairs = (piece.partition("=") for piece in str(value or "").split(",") if "=" in piece)
    return {key.strip(): one for key, _, one in pairs}
