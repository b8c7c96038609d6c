"""``vniah sweep-rope``: V-NIAH at several RoPE bases, the training-free extrapolation of the paper's Figure 4 (iv)."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vniah.files import read_json, replacing

if TYPE_CHECKING:
    import pandas

    from vniah.runs.run import Run
    from vniah.runs.task import NeedleTask

# The bases that the paper chooses from (section 5.1).
PAPER_THETAS = "3e6,1e7,3e7,1e8,3e8,1e9"
_SUMMARY = "sweep.json"
# What must not change within one output folder.
_IDENTITY = ("model", "model_args", "haystack_fingerprint", "needles_fingerprint")


def command(
    model: Annotated[str, typer.Option(help="A checkpoint folder or a Hub id, or nano.")],
    thetas: Annotated[str, typer.Option(help="RoPE bases, with commas between.")] = PAPER_THETAS,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for one run a base, and sweep.json.")] = Path(
        "rope_sweep"
    ),
    frames: Annotated[str | None, typer.Option(help="Frame counts; VNIAH_FRAMES unless given.")] = None,
    depths: Annotated[str | None, typer.Option(help="Depths in percent; VNIAH_DEPTHS unless given.")] = None,
    haystack: Annotated[str | None, typer.Option(help="VNIAH_HAYSTACK unless given.")] = None,
    needles: Annotated[str | None, typer.Option(help="VNIAH_NEEDLES unless given.")] = None,
    model_args: Annotated[
        str, typer.Option(help="More model arguments, key=value,... as our lmms-eval models take them.")
    ] = "",
) -> None:
    """Score a grid at several RoPE bases and name the best.

    Frames are encoded once for all bases. Each base has a folder with a journal in OUTPUT, which `vniah heatmap`
    reads; a sweep that was stopped goes on where it was.
    """
    from longva_model.arguments import parse_model_args
    from vniah.runs.open import open_tasks

    bases = parse_thetas(thetas)
    extra = parse_model_args(model_args)
    for key, instead in (("rope_theta", "--thetas"), ("journal", "--output"), ("pretrained", "--model")):
        if key in extra:
            raise ValueError(f"{key} is not for --model-args here; use {instead}")
    given = {"frames": frames, "depths": depths, "haystack": haystack, "needles": needles}
    (task,) = open_tasks(["vniah"], given)
    about = {"model": model, "model_args": model_args, **task.provenance()}
    _check_folder(output, about)
    scores: dict[float, dict[str, Any]] = {}
    for base in bases:
        folder = output / f"rope_theta_{label(base)}"
        args = {"pretrained": model, **extra, "rope_theta": base, "journal": str(folder / "journal.jsonl")}
        run, speaks = _score(task, args)
        scores[base] = summary(run.cells)
        if not speaks:
            continue  # another process has the same and prints
        print(f"RoPE base {label(base)}: mean {scores[base]['mean']:.3f}", flush=True)
        _write(output / _SUMMARY, {**about, "bases": {label(one): found for one, found in scores.items()}})
    if speaks:
        print("\n" + table(scores))
        print(f"best RoPE base: {verdict(scores)}")
        print(f"effective: the most frames up to which every column's mean is at least {task.threshold:g}")
        print(f"draw them: vniah heatmap {output}/rope_theta_* -o sweep.png")


def parse_thetas(text: str) -> list[float]:
    """``"3e6,1e7"`` as rising numbers; ValueError for a piece that is none above 1 or comes twice, or for no piece."""
    found: dict[str, float] = {}
    for piece in filter(None, (part.strip() for part in text.split(","))):
        try:
            base = float(piece)
        except ValueError:
            base = 0.0
        if not 1.0 < base < float("inf"):
            raise ValueError(
                f"cannot read the RoPE base {piece!r} in {text!r}; expected numbers such as {PAPER_THETAS}"
            )
        if label(base) in found:
            raise ValueError(f"the RoPE base {piece} comes twice in {text!r}")
        found[label(base)] = base
    if not found:
        raise ValueError(f"no RoPE bases are given; expected numbers such as {PAPER_THETAS}")
    return sorted(found.values())


def label(base: float) -> str:
    """A base as people write it: 3e6, 5e8, 500000."""
    text = f"{base:.6g}".replace("e+0", "e").replace("e+", "e")
    return f"{text[0]}e{len(text) - 1}" if text.isdigit() and set(text[1:]) == {"0"} else text


def _score(task: NeedleTask, args: Mapping[str, Any]) -> tuple[Run, bool]:
    """The run of the grid at one base; also whether this process is the one that prints."""
    from longva_model.arguments import ModelArgs
    from longva_model.run.needle_model import NeedleModel
    from vniah.runs.measure import measure

    # The model of the base before must be gone by now: two of 7B do not fit one device.
    gc.collect()
    name = f"{args['pretrained']}, RoPE base {label(args['rope_theta'])}"
    model = NeedleModel(ModelArgs.read(dict(args)), name=name)
    (run,) = measure([task], model)
    return run, model.speaks


def summary(cells: pandas.DataFrame) -> dict[str, Any]:
    """The figures of one base."""
    from vniah.runs import scoring

    return {
        "mean": scoring.grid_mean(cells),
        "effective_frames": scoring.effective_frames(cells),
        "control": scoring.control_mean(cells),
        "by_frames": {str(frames): mean for frames, mean in scoring.column_means(cells).items()},
    }


def best(scores: Mapping[float, Mapping[str, Any]]) -> float:
    """The base with the highest mean; of equals the one with more effective frames, then the smallest."""
    return max(scores, key=lambda base: (*_figures(scores[base]), -base))


def verdict(scores: Mapping[float, Mapping[str, Any]]) -> str:
    """The best base, and which others did as well: a tie is no finding."""
    first = best(scores)
    tied = [label(base) for base in scores if base != first and _figures(scores[base]) == _figures(scores[first])]
    return label(first) + (f" (a tie with {', '.join(tied)}; the smallest is named)" if tied else "")


def _figures(found: Mapping[str, Any]) -> tuple[float, int]:
    return found["mean"], found["effective_frames"]


def table(scores: Mapping[float, Mapping[str, Any]]) -> str:
    """Bases down; mean, effective frames, control, and the mean of each frame count across."""
    rows = [["RoPE base", "mean", "effective", "control", *next(iter(scores.values()))["by_frames"]]]
    for base, found in scores.items():
        control = "-" if found["control"] is None else f"{found['control']:.3f}"
        means = [f"{mean:.2f}" for mean in found["by_frames"].values()]
        rows.append([label(base), f"{found['mean']:.3f}", str(found["effective_frames"]), control, *means])
    return "\n".join("  ".join(f"{value:>9}" for value in row) for row in rows)


def _check_folder(output: Path, about: Mapping[str, Any]) -> None:
    """Raise ValueError where the folder holds a sweep of something else; says of what."""
    before = output / _SUMMARY
    output.mkdir(parents=True, exist_ok=True)
    if not before.exists():
        _write(before, {**about, "bases": {}})
        return
    told = read_json(before)
    for key in _IDENTITY:
        if told.get(key) != about[key]:
            raise ValueError(
                f"{output} holds a sweep of {key} {told.get(key)!r}, and this one has {about[key]!r}; "
                "choose another folder with -o"
            )


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=2), encoding="utf-8")
