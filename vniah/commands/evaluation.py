"""The front door: needle tasks measured without lmms-eval, from the terminal (``vniah run``) or from Python."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from vniah.runs.results import Run


def evaluate(
    model: str | Callable[[Any, str], str],
    task: str,
    *,
    frames: Any = None,
    depths: Any = None,
    haystack: str | None = None,
    needles: str | None = None,
    decoder: str | None = None,
    lengths: Any = None,
    samples: int | None = None,
    tokenizer: str | None = None,
    seed: int | None = None,
    shared_distractors: bool | None = None,
    limit: int | None = None,
    output: str | Path | None = None,
    name: str | None = None,
    **model_args: Any,
) -> Run:
    """Measure a needle task on a model: ``vniah.evaluate("lmms-lab/LongVA-7B", "vniah", frames="200-3000:200")``.

    Args:
        model: a name as ``vniah run --model`` takes it, or a function ``(mp4_path, question) -> str`` that answers
            freely (for ``vniah_generate``; the path is ``None`` for ``text_niah_generate``).
        task: a needle task, not a group of several.
        frames, depths, haystack, needles, decoder: V-NIAH's inputs; a grid is a text such as "200-3000:200", a number
            or a list of numbers. What is left out is read from ``VNIAH_*``, else is the task's own.
        lengths, samples, tokenizer, seed, shared_distractors: text NIAH's, as ``TEXT_NIAH_*``.
        limit: score the first so many cells alone.
        output: keep results files there, as ``vniah heatmap`` and lmms-eval know them.
        name: what to call the run; the model's name otherwise.
        model_args: more arguments of the model (see ``longva_model.lmms.arguments.ModelArgs``).

    Raises:
        ValueError: no such task or model argument, bad inputs, or a model that does not suit the task.
        FileNotFoundError: no such model, film or needle set.
        vniah.runs.callable_model.CellError: the function failed at a cell; names it.
    """
    given = {
        "frames": _spec(frames),
        "depths": _spec(depths),
        "haystack": haystack,
        "needles": needles,
        "decoder": decoder,
        "lengths": _spec(lengths),
        "samples": samples,
        "tokenizer": tokenizer,
        "seed": seed,
        "shared_distractors": shared_distractors,
    }
    if not callable(model) and not isinstance(model, str):
        raise ValueError(f"a model is a name or a function, got {model!r}")
    if not isinstance(task, str):
        raise ValueError(f"task must be the name of one needle task, got {task!r}")
    if name is not None and not (isinstance(name, str) and name.strip()):
        raise ValueError(f"name must be a text that is not empty, got {name!r}")
    if output is not None and not str(output).strip():
        raise ValueError("output is empty; leave it out, or give a folder")
    try:
        limit = None if limit is None else operator.index(limit)
    except TypeError:
        raise ValueError(f"limit must be a whole number of cells, got {limit!r}") from None
    folder = None if output is None else Path(output).expanduser()
    (run,) = evaluate_tasks(model, [task], given, model_args, output=folder, limit=limit, name=name, single=True)
    return run


def _check_options(options: Mapping[str, Any], arguments: Sequence[str]) -> None:
    """Raise ValueError for an option of ``evaluate`` that is none, naming the nearest input or model argument."""
    import inspect

    from vniah.notices import did_you_mean

    inputs = [name for name in inspect.signature(evaluate).parameters if name not in ("model", "task", "model_args")]
    for key in options:
        if key not in arguments:
            near = did_you_mean(key, inputs) or did_you_mean(key, arguments)
            what = near or f"; inputs are {', '.join(inputs)}; model arguments are {', '.join(arguments)}"
            raise ValueError(f"{key} is no input and no model argument{what}")


def evaluate_tasks(
    model: str | Callable[[Any, str], str],
    names: Sequence[str],
    given: Mapping[str, Any],
    model_args: Mapping[str, Any],
    *,
    output: Path | None = None,
    limit: int | None = None,
    name: str | None = None,
    single: bool = False,
) -> list[Run]:
    """Measure tasks and groups; one run a task, or no more than one if ``single``. See ``evaluate``; ``given`` are
    inputs by name.

    Everything is checked before a weight is read: output, model, tasks, films, needles, lengths, memory.
    """
    import inspect

    from vniah import notices
    from vniah.notices import did_you_mean
    from vniah.runs.callable_model import CallableModel
    from vniah.runs.measure import Model, check_writable, measure, model_folder
    from vniah.runs.open import open_tasks

    notices.forget()
    if output is not None:
        check_writable(output)
    # Before torch, which takes seconds to import: most mistakes are in here.
    tasks = open_tasks(names, given)
    if single and len(tasks) > 1:
        raise ValueError(f"{', '.join(names)} stands for {', '.join(one.name for one in tasks)}; name one of them")
    chosen: Model
    if callable(model):
        for key in model_args:
            near = did_you_mean(key, inspect.signature(evaluate).parameters)
            raise ValueError(f"{key} is no input, and a function takes no model arguments{near}")
        chosen = CallableModel(model, name or "")
        if output is not None:
            chosen.folder = model_folder(output, chosen.name)
    else:
        from longva_model.lmms.arguments import ModelArgs
        from longva_model.run.needle_model import NeedleModel

        if single:
            _check_options(model_args, [one.name for one in fields(ModelArgs)])
        chosen = NeedleModel(ModelArgs.read({"pretrained": model, **model_args}))
    try:
        runs = measure(tasks, chosen, output=output, limit=limit)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(chosen.interrupted()) from None
    from vniah.commands.run_options import with_training_length

    named = [run if name is None else _renamed(run, name) for run in runs]
    return [with_training_length(run) for run in named]


def _spec(value: Any) -> str | None:
    """A grid's axis as a text: a number or several are as good."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        raise ValueError(f"cannot read {value!r} as numbers; give a text, a number or several")
    try:
        values = list(value)
    except TypeError:
        values = [value]
    return ",".join(str(one) for one in values)


def _renamed(run: Run, name: str) -> Run:
    from dataclasses import replace

    return replace(run, name=name)


def save_heatmap(run: Run, path: str | Path, *, partial: bool = False) -> Path:
    """See ``Run.heatmap``."""
    from vniah.plots.grid_data import grid_data
    from vniah.plots.heatmap import save_heatmap as save
    from vniah.plots.style import check_image_path
    from vniah.runs.run_reader import check_complete

    target = check_image_path(path)
    if not partial:
        check_complete(run, run.name)
    saved: Path = save(grid_data(run), target)
    return saved


def save_report(run: Run, path: str | Path, *, partial: bool = False) -> Path:
    """See ``Run.report``."""
    from vniah.commands.run_options import check_text_output
    from vniah.plots.report import build_page
    from vniah.plots.report.pictures import needle_pictures
    from vniah.plots.run_notes import left_out, limits
    from vniah.plots.style import save_text
    from vniah.runs.run_reader import check_complete

    target = Path(path)
    check_text_output(target, (".html", ".htm"), ())
    if not partial:
        check_complete(run, run.name)
    pictures, note = needle_pictures(run)
    notes = [*([note] if note else []), *left_out([run]), *limits([run])]
    saved: Path = save_text(build_page([run], pictures=[pictures], notes=notes), target)
    return saved
