"""What the shipped model scores in every needle test on film, with intervals, and its accuracy against distractors.

Nothing is timed but the whole: the figures are of docs/tasks.md, to be made anew with other weights. One model is
loaded once, and a few CPU minutes make the table, ``OUT/tasks`` and ``OUT/axis-*`` (runs), and ``OUT/distractors.png``:

    python benchmarks/nano_ruler.py -o out --model nano
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping
from pathlib import Path

from vniah.commands.figure import command as figure
from vniah.runs.measure import Model, measure
from vniah.runs.open import open_tasks
from vniah.runs.run import Run
from vniah.runs.scoring import control_mean, grid_mean
from vniah.runs.uncertainty import uncertainty
from vniah.visual.scenes import METRICS

GRID = {"frames": "32", "depths": "0-100:25", "haystack": "synthetic:7:80:64x64"}
# Of each task as many as have room in every cell, look-alikes 4 frames apart; and of how many shared attributes.
COUNTS: dict[str, tuple[int, ...]] = {"vniah_d": (1, 2, 4), "vruler_distractor": (1, 4, 16)}
LIKENESS = (0, 1, 2)


def measured(model: Model, tasks: tuple[str, ...], given: Mapping[str, object], output: Path) -> list[Run]:
    """Runs under ``VNIAH_`` settings, which are those of this call alone."""
    names = {f"VNIAH_{name.upper()}": str(value) for name, value in given.items()}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        return measure(open_tasks(tasks, GRID), model, output=output)
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def row(run: Run) -> str:
    """A line of the table: the mean and its interval, the controls', guessing, and what the task measures beside."""
    told = uncertainty(run.cells, 0.9)
    low, high = told.mean if told is not None else (float("nan"),) * 2
    chance = (run.settings.get("task") or {}).get("chance")
    more = ", ".join(
        f"{name.removeprefix('vniah_')} {value:.2f}" for name, value in run.metrics.items() if name in METRICS
    )
    mean, control = grid_mean(run.cells), control_mean(run.cells)
    guess = "" if chance is None else f"{chance:.2f}"
    return f"| `{run.task}` | {mean:.2f} ({low:.2f} to {high:.2f}) | {control or 0:.2f} | {guess} | {more} |"


def main() -> None:
    from longva_model.arguments import ModelArgs
    from longva_model.run.needle_model import NeedleModel

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--samples", type=int, default=20, help="draws, and needles, at each length and depth")
    given = parser.parse_args()
    # No journal: what stands in the table was answered by these weights now.
    model = NeedleModel(ModelArgs.read({"pretrained": given.model, "device": "cpu", "journal": "none"}))
    looked = {"samples": given.samples, "needles": f"icons:0:{given.samples}", "distance": 4}
    print("| task | accuracy (95 %) | control | guessing | beside it |\n| --- | --- | --- | --- | --- |")
    for run in measured(model, ("vniah", "vniah_d", "vruler"), looked, given.output / "tasks"):
        print(row(run), flush=True)
    folders = []
    for task, counts in COUNTS.items():
        for count in counts:
            for likeness in LIKENESS if task == "vruler_distractor" else (None,):
                told = {} if likeness is None else {"likeness": likeness}
                folders.append(given.output / "-".join(map(str, ("axis", task, count, *told.values()))))
                measured(model, (task,), {**looked, **told, "distractors": count}, folders[-1])
    drawn = given.output / "distractors.png"
    figure("distractors", [str(folder) for folder in folders], drawn, csv=drawn.with_suffix(".csv"))
    print(f"{time.process_time():.0f} s of CPU in all")


if __name__ == "__main__":
    main()
