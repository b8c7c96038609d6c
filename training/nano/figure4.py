"""``python -m vniah.training.nano.figure4 RUN...``: the table of Figure 4 in miniature, over runs of several seeds."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROWS = {
    "longva": "long text, UniRes (LongVA-nano)",
    "anyres": "long text, AnyRes",
    "short": "short text",
    "short_best_base": "short text, best larger RoPE base at test time",
    "matched_control": "matched control (base and tokens of the long one, length 256)",
    "frozen_decoder": "long text, UniRes, decoder frozen in vision training",
}


def collect(runs: Sequence[Path]) -> dict[str, list[dict[str, Any]]]:
    """The reports of every row, one a run that has it.

    Raises:
        FileNotFoundError: none of the runs has a row that was evaluated.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for row in ROWS:
        paths = [run / row / "vniah.json" for run in runs]
        reports = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]
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
