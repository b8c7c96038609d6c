"""``vniah train``: run a recipe, show what it would do, or plan its memory."""

from __future__ import annotations

import os
import signal
from typing import Annotated

import typer


def command(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe such as nano.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value on the recipe (seed=3) or a stage (text.train.lr=1e-4).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the recipe and its inputs, and stop.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Print the memory each stage needs on a GPU, and stop.")] = False,
    gpus: Annotated[int, typer.Option(help="For --plan: how many GPUs share the work.")] = 8,
    gpu_memory: Annotated[float, typer.Option(help="For --plan: memory of one GPU in GiB.")] = 80.0,
    stage: Annotated[str | None, typer.Option(help="Run this stage alone.")] = None,
) -> None:
    """Train by a recipe: stages in order, each reading what the one before wrote.

    A run that was stopped goes on where it was when the same command is given again. On several GPUs or
    nodes: torchrun --nproc-per-node 8 -m vniah.cli train RECIPE.
    """
    from vniah.training.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    if stage is not None:
        loaded.stage(stage)  # an unknown one is an error whatever is asked for
    if plan:
        from vniah.training.plan import plan_recipe

        typer.echo(plan_recipe(loaded, gpus=gpus, gpu_gib=gpu_memory))
        return
    if dry_run:
        from vniah.training.runner import check_recipe, describe

        typer.echo(describe(loaded))
        check_recipe(loaded, only=stage)
        typer.echo("the inputs are there; nothing was run")
        return
    from vniah.training.runner import run_recipe, what_goes_on

    if "TORCHELASTIC_RUN_ID" not in os.environ:  # torchrun ends its ranks so, who may wait for each other in a call
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run_recipe(loaded, say=typer.echo, only=stage)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(what_goes_on(loaded)) from None
