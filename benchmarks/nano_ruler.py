"""What the shipped model scores in every needle test on film, with intervals, and its accuracy against distractors.

Nothing is timed: the figures are of docs/tasks.md, to be made anew with other weights. Minutes on one core:

    python benchmarks/nano_ruler.py -o out --model nano
    vniah figure distractors out/axis-* -o docs/images/nano-distractors.png
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

from vniah.commands.run import evaluate_tasks
from vniah.runs.run import Run
from vniah.runs.scoring import control_mean, grid_mean
from vniah.runs.uncertainty import uncertainty
from vniah.visual.scenes import METRICS

GRID = {"frames": "32", "depths": "0-100:25", "haystack": "synthetic:7:80:64x64"}
TASKS = ("vniah_d", "vruler")
COUNTS, LIKENESS = (1, 4, 16), (0, 1, 2)


def measured(model: str, tasks: tuple[str, ...], given: Mapping[str, object], output: Path) -> list[Run]:
    """Runs under ``VNIAH_`` settings, which are those of this call alone."""
    names = {f"VNIAH_{name.upper()}": str(value) for name, value in given.items()}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        return evaluate_tasks(model, tasks, GRID, {"device": "cpu"}, output=output)
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
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--samples", type=int, default=10, help="draws at each length and depth")
    given = parser.parse_args()
    looked = {"samples": given.samples, "needles": f"icons:0:{given.samples}", "distance": 4}
    print("| task | accuracy (95 %) | control | guessing | beside it |\n| --- | --- | --- | --- | --- |")
    # The needles are V-NIAH-D's alone.
    for tasks in (("vniah", "vniah_d"), ("vruler",)):
        for run in measured(given.model, tasks, looked, given.output / "tasks"):
            print(row(run), flush=True)
    for count in COUNTS:
        axis = {**looked, "distractors": count}
        measured(given.model, ("vniah_d",), axis, given.output / f"axis-vniah_d-{count}")
        for likeness in LIKENESS:
            folder = given.output / f"axis-ruler-{likeness}-{count}"
            measured(given.model, ("vruler_distractor",), {**axis, "likeness": likeness}, folder)


if __name__ == "__main__":
    main()
