"""``vniah run``: needle tasks on a model, without lmms-eval."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def command(
    tasks: Annotated[list[str], typer.Argument(metavar="TASK...", help="Needle tasks: vniah, text_niah_0, ...")],
    model: Annotated[str, typer.Option(help="nano, a checkpoint folder or a Hub id.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for results and the heatmap.")],
    model_args: Annotated[
        str, typer.Option(help="More model arguments: key=value,... as longva_ring takes them.")
    ] = "",
    frames: Annotated[str | None, typer.Option(help="V-NIAH: frame counts, 4,8 or 200-3000:200.")] = None,
    depths: Annotated[str | None, typer.Option(help="Needle depths in percent, 0-100:20.")] = None,
    haystack: Annotated[str | None, typer.Option(help="Film, folder of images, synthetic[:seed]; or text.")] = None,
    needles: Annotated[str | None, typer.Option(help="V-NIAH: a Hub dataset, a folder, builtin, icons.")] = None,
    decoder: Annotated[str | None, typer.Option(help="V-NIAH: pyav, pyav-fast or decord.")] = None,
    lengths: Annotated[str | None, typer.Option(help="Text NIAH: tokens, 32K-512K:32K.")] = None,
    samples: Annotated[int | None, typer.Option(help="Text NIAH: numbers a cell.", min=1)] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Text NIAH by free answers: what counts its tokens.")] = None,
    seed: Annotated[int | None, typer.Option(help="Text NIAH: seed of all draws.")] = None,
    shared_distractors: Annotated[
        bool | None, typer.Option("--shared-distractors", help="Text NIAH: one set of distractors a length.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Score the first so many cells of each task.", min=1)] = None,
) -> None:
    """Score needle tasks on a model, and draw their heatmaps.

    Flags win over the environment (VNIAH_FRAMES, ...), which wins over what the task stands for. The same command
    continues a run that was stopped. Several devices: torchrun --nproc_per_node N -m vniah run ...
    """
    from longva_model.lmms.arguments import parse_model_args
    from vniah.commands.evaluation import evaluate_tasks, save_heatmap
    from vniah.plots.grid_data import grid_data, to_text

    more = parse_model_args(model_args)
    if "pretrained" in more:
        raise ValueError("pretrained is not for --model-args here; use --model")
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
    }
    runs = evaluate_tasks(model, tasks, given, more, output=output.expanduser(), limit=limit)
    # Of several processes the first one speaks for all.
    for run in runs if int(os.environ.get("RANK") or 0) == 0 else ():
        files = run.settings["files"]
        print(f"wrote {files['results']}")
        if not run.placed:
            print(f"{run.task}: no cell with a needle was scored (--limit {limit})")
            continue
        print(to_text(grid_data(run)))
        partial = bool(run.missing())
        picture = Path(files["results"]).with_name(f"{Path(files['samples']).stem.replace('_samples_', '_')}.png")
        print(f"wrote {save_heatmap(run, picture, partial=partial)}")
        told = " --partial" if partial else ""
        print(f"next: vniah report {files['samples']} -o {run.task}.html{told}")
