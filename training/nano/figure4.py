"""Figure 4 in miniature over runs of several seeds: its table, and its panels as runs that ``vniah figure nano`` draws.

``python -m vniah.training.nano.figure4 RUN...`` prints the table.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vniah.files import read_json
from vniah.runs.run import Run, cells_table

ROWS = {
    "longva": "Long text, UniRes (LongVA-nano)",
    "anyres": "Long text, AnyRes",
    "short": "Short text",
    "short_best_base": "Short text, best enlarged RoPE base",
    "matched_control": "Matched control: length alone differs",
    "frozen_decoder": "Long text, decoder frozen in alignment",
    "unfitted_projector": "Long text, decoder frozen, projector not fitted to words",
}


def as_runs(folders: Sequence[Path]) -> list[Run]:
    """One run a row, with the cells of every seed.

    Raises:
        FileNotFoundError: as ``collect``.
    """
    found = collect(folders)
    recipe = read_json(next(folder / "recipe.json" for folder in folders))
    return [
        Run(
            name=ROWS[row],
            task="vniah",
            model=row,
            cells=cells_table(
                {**cell, "needle": f"run {seed}: {cell['needle']}"}
                for seed, report in enumerate(reports)
                for cell in report["cells"]
            ),
            train_frames=text_length(recipe, row) / tokens_per_frame(recipe),
        )
        for row, reports in found.items()
    ]


def text_length(recipe: dict[str, Any], row: str) -> int:
    """Tokens of the longest text that a row's decoder was trained on."""
    stages = {stage["name"]: stage for stage in recipe["stages"]}
    stage = stages[row]
    while stage["kind"] != "text":
        stage = stages[stage["model_from"]]
    return int(stage["sequence_length"])


def tokens_per_frame(recipe: dict[str, Any]) -> int:
    """Visual tokens of a frame: the tower's patches, pooled two by two."""
    tower = next(stage["new"] for stage in recipe["stages"] if stage["kind"] == "tower")
    return int(tower["image_size"] // tower["patch_size"] // 2) ** 2


def collect(runs: Sequence[Path]) -> dict[str, list[dict[str, Any]]]:
    """The reports of every row, one a run that has it.

    Raises:
        FileNotFoundError: none of the runs has a row that was evaluated.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for row in ROWS:
        paths = [run / row / "vniah.json" for run in runs]
        reports = [read_json(path) for path in paths if path.is_file()]
        if reports:
            found[row] = reports
    if not found:
        raise FileNotFoundError(f"no evaluated rows in {', '.join(map(str, runs))}; run the recipe nano_figure4 first")
    return found


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: mean accuracy by frames with the lowest and highest seed where there are several."""
    frames = sorted({int(f) for reports in found.values() for report in reports for f in report["by_frames"]})
    lines = [
        "| backbone | " + " | ".join(map(str, frames)) + " | control | seeds |",
        "|---|" + "---|" * (len(frames) + 2),
    ]
    for row, reports in found.items():
        cells = [spread([report["by_frames"][str(f)] for report in reports]) for f in frames]
        cells += [spread([report["control"] for report in reports]), str(len(reports))]
        lines.append(f"| {ROWS[row]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """``0.93 (0.90-0.96)``: mean, lowest and highest; the value alone when there is one."""
    mean = f"{statistics.fmean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.2f}-{max(values):.2f})"


if __name__ == "__main__":
    print(table(collect([Path(argument) for argument in sys.argv[1:]])))
