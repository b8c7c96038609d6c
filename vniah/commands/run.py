"""``vniah run`` and ``vniah.evaluate``: needle tasks on a model, without lmms-eval."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from vniah.commands.run_options import Threshold
from vniah.runs.run import Run

_AXES = ("frames", "depths", "lengths")


def command(
    tasks: Annotated[list[str], typer.Argument(metavar="TASK...", help="Needle tasks: vniah, text_niah_0, ...")],
    model: Annotated[
        str, typer.Option(help="nano, a checkpoint folder, a Hub id, or openai:NAME for one behind a server.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for results and the heatmap.")],
    model_args: Annotated[
        str, typer.Option(help="More model arguments: key=value,... as our lmms-eval models take them.")
    ] = "",
    base_url: Annotated[
        str | None, typer.Option(help="Of a served model: http://HOST:8000/v1; OPENAI_BASE_URL otherwise.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="Of a served model: money to spend at most; needs price_in and price_out.")
    ] = None,
    frames: Annotated[str | None, typer.Option(help="V-NIAH: frame counts, 4,8 or 200-3000:200.")] = None,
    depths: Annotated[str | None, typer.Option(help="Needle depths in percent, 0-100:20.")] = None,
    haystack: Annotated[str | None, typer.Option(help="Film, folder of images, synthetic[:seed]; or text.")] = None,
    needles: Annotated[str | None, typer.Option(help="V-NIAH: a Hub dataset, a folder, builtin, icons.")] = None,
    decoder: Annotated[str | None, typer.Option(help="V-NIAH: pyav, pyav-fast or decord.")] = None,
    lengths: Annotated[str | None, typer.Option(help="Text NIAH: tokens, 32K-512K:32K.")] = None,
    samples: Annotated[int | None, typer.Option(help="Text NIAH, V-RULER: draws at each place.", min=1)] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Text NIAH by free answers: what counts its tokens.")] = None,
    seed: Annotated[int | None, typer.Option(help="Text NIAH, V-RULER: seed of all draws.")] = None,
    shared_distractors: Annotated[
        bool | None, typer.Option("--shared-distractors", help="Text NIAH: one set of distractors a length.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="V-NIAH: repeat the grid with so many seeds.")] = None,
    threshold: Threshold = None,
    limit: Annotated[int | None, typer.Option(help="Score the first so many cells of each task.", min=1)] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Tell where the time went.")] = False,
) -> None:
    """Score needle tasks on a model, and draw their heatmaps.

    Flags win over the environment (VNIAH_FRAMES, ...), which wins over what the task stands for. The same command
    continues a run that was stopped. Several devices: torchrun --nproc_per_node N -m vniah run ...
    """
    from longva_model.arguments import parse_model_args
    from vniah.plots.grid_data import GridData, to_text
    from vniah.runs import profiling
    from vniah.runs.scoring import effective_at
    from vniah.visual.scenes import METRICS

    more = parse_model_args(model_args)
    if "pretrained" in more:
        raise ValueError("pretrained is not for --model-args here; use --model")
    more |= {key: str(one) for key, one in {"base_url": base_url, "budget": budget}.items() if one is not None}
    if profile:
        more["profile"] = "1"
        profiling.start(whole=True)
    given = {
        "frames": frames,
        "depths": depths,
        "haystack": haystack,
        "needles": needles,
        "decoder": decoder,
        "lengths": lengths,
        "samples": samples,
        "tokenizer": tokenizer,
        "seed": seed,
        "shared_distractors": shared_distractors,
        "seeds": seeds,
    }
    at = effective_at(threshold)
    runs = evaluate_tasks(model, tasks, given, more, output=output.expanduser(), limit=limit, threshold=at)
    # Of several processes the first one speaks for all.
    for run in runs if int(os.environ.get("RANK") or 0) == 0 else ():
        files = run.settings["files"]
        print(f"wrote {files['results']}")
        if not run.is_grid:
            print(f"{run.task}: no cell with a needle was scored (--limit {limit})")
            continue
        print(f"{run.task}, {to_text(GridData(run, at))}")
        if beside := [f"{key} {value:.3f}" for key, value in run.metrics.items() if key in METRICS]:
            print(f"also {', '.join(beside)}")
        partial = bool(run.missing())
        picture = Path(files["results"]).with_name(f"{Path(files['samples']).stem.replace('_samples_', '_')}.png")
        print(f"wrote {save_heatmap(run, picture, partial=partial, threshold=at)}")
        told = " --partial" if partial else ""
        print(f"next: vniah report {files['samples']} -o {run.task}.html{told}")


def evaluate(
    model: str | Callable[[Any, str], str],
    task: str,
    *,
    limit: int | None = None,
    output: str | Path | None = None,
    name: str | None = None,
    threshold: float | None = None,
    **options: Any,
) -> Run:
    """See ``vniah.evaluate``."""
    from vniah.lmms_plugin import tasks_dir
    from vniah.runs.open import INPUTS, expand, read_index

    if not callable(model) and not isinstance(model, str):
        raise ValueError(f"a model is a name or a function, got {model!r}")
    if not isinstance(task, str):
        raise ValueError(f"task must be the name of one needle task, got {task!r}")
    members = expand(task, read_index(tasks_dir()))
    if len(members) > 1:
        raise ValueError(f"{task} stands for {', '.join(members)}; name one of them")
    if name is not None and not (isinstance(name, str) and name.strip()):
        raise ValueError(f"name must be a text that is not empty, got {name!r}")
    if output is not None and not str(output).strip():
        raise ValueError("output is empty; leave it out, or give a folder")
    try:
        limit = None if limit is None else operator.index(limit)
    except TypeError:
        raise ValueError(f"limit must be a whole number of cells, got {limit!r}") from None
    inputs = dict.fromkeys(key for family in INPUTS.values() for key in family)
    given = {key: _spec(value) if key in _AXES else value for key, value in options.items() if key in inputs}
    model_args = {key: value for key, value in options.items() if key not in inputs}
    if not _is_served(model):  # whose arguments say so themselves
        known = [*inputs, "limit", "output", "name", "threshold"]
        _check_options(model_args, known, of_function=callable(model))
    folder = None if output is None else Path(output).expanduser()
    (run,) = evaluate_tasks(
        model, [task], given, model_args, output=folder, limit=limit, name=name, threshold=threshold
    )
    return run


def _is_served(model: Any) -> bool:
    from vniah.served.arguments import PREFIX

    return isinstance(model, str) and model.startswith(PREFIX)


def _spec(value: Any) -> str | None:
    """A grid's axis as a text: a number or several are as good."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        raise ValueError(f"cannot read {value!r} as numbers; give a text, a number or several")
    try:
        return ",".join(map(str, value))
    except TypeError:
        return str(value)


def _check_options(options: Iterable[str], inputs: Sequence[str], *, of_function: bool) -> None:
    """Raise ValueError for an option that is none, naming the nearest input or model argument."""
    from vniah.notices import did_you_mean

    arguments = []
    if not of_function and options:
        from longva_model.arguments import ModelArgs

        arguments = [one.name for one in fields(ModelArgs)]
    for key in options:
        if of_function:
            raise ValueError(f"{key} is no input, and a function takes no model arguments{did_you_mean(key, inputs)}")
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
    threshold: float | None = None,
) -> list[Run]:
    """Measure tasks and groups; one run a task. See ``evaluate``; ``given`` are inputs by name.

    Everything is checked before a weight is read: output, model, tasks, films, needles, lengths, memory.
    """
    from vniah import notices
    from vniah.commands.run_options import with_training_length
    from vniah.runs import profiling
    from vniah.runs.measure import CallableModel, Model, check_writable, measure, model_folder
    from vniah.runs.open import open_tasks
    from vniah.runs.scoring import effective_at

    notices.begin()
    if output is not None:
        check_writable(output)
    served = None
    if isinstance(model, str) and _is_served(model):
        from vniah.served.arguments import PREFIX, ServedArgs

        served = ServedArgs.read({"model": model.removeprefix(PREFIX), **model_args})
    # Before torch, which takes seconds to import: most mistakes are in here.
    at = effective_at(threshold)
    tasks = open_tasks(names, given)
    for one in tasks:
        one.threshold = at
    chosen: Model
    if callable(model):
        chosen = CallableModel(model, name or "")
        if output is not None:
            chosen.folder = model_folder(output, chosen.name)
    elif served is not None:
        from vniah.served.model import ServedModel

        chosen = ServedModel(served, name or "")
        if output is not None:
            chosen.folder = model_folder(output, chosen.name)
    else:
        from longva_model.arguments import ModelArgs
        from longva_model.run.needle_model import NeedleModel

        args = ModelArgs.read({"pretrained": model, **model_args})
        if args.profile:
            profiling.start()
        with profiling.part("load"):
            chosen = NeedleModel(args)
    try:
        runs = measure(tasks, chosen, output=output, limit=limit)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(chosen.interrupted()) from None
    finally:
        profiling.say()
    return [with_training_length(run if name is None else replace(run, name=name)) for run in runs]


def save_heatmap(run: Run, path: str | Path, *, partial: bool = False, threshold: float | None = None) -> Path:
    """See ``Run.heatmap``."""
    from vniah.plots.grid_data import GridData
    from vniah.plots.heatmap import save_heatmap as save
    from vniah.plots.style import check_image_path

    target = check_image_path(path)
    if not partial:
        run.check_complete(run.name)
    saved: Path = save([GridData(run, threshold)], target)
    return saved


def save_report(run: Run, path: str | Path, *, partial: bool = False) -> Path:
    """See ``Run.report``."""
    from vniah.commands.run_options import check_text_output
    from vniah.plots.report import build_page, needle_pictures
    from vniah.plots.run_notes import left_out
    from vniah.plots.style import save_text

    target = Path(path)
    check_text_output(target, (".html", ".htm"), ())
    if not partial:
        run.check_complete(run.name)
    pictures, note = needle_pictures(run)
    notes = [*([note] if note else []), *left_out([run])]
    saved: Path = save_text(build_page([run], pictures=[pictures], notes=notes), target)
    return saved
