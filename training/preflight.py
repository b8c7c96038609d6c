"""What can be known to be wrong before the first step: missing inputs, a full disk, a length that cannot be sharded.

Also the text of ``--dry-run``.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from vniah.training.recipe import Recipe
from vniah.training.stages import (
    AlignStage,
    DpoStage,
    EvaluateStage,
    PrepareTextStage,
    Stage,
    TextStage,
    TowerStage,
    Train,
    inputs,
)

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
MINIMUM_FREE = 64 << 20


def check_recipe(recipe: Recipe, world_size: int | None = None) -> None:
    """Check everything a recipe needs.

    Args:
        recipe: what will run.
        world_size: ranks; from the launcher's WORLD_SIZE unless given.

    Raises:
        FileNotFoundError: an input folder or file that is not there.
        ValueError: a sequence length that the ranks cannot share, or steps that data cannot give.
        OSError: too little room on the disk.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1")) if world_size is None else world_size
    names = {stage.name for stage in recipe.stages}
    for stage in recipe.stages:
        for link in inputs(stage):
            if link not in names:
                _check_source(stage.name, link)
        for path in _files(stage):
            if not Path(path).exists():
                raise FileNotFoundError(
                    f"stage {stage.name!r} needs {path}, which is not there; set it by {stage.name}.…="
                )
        if isinstance(stage, TextStage) and stage.train.attention == "ring" and stage.sequence_length % (2 * ranks):
            good = stage.sequence_length // (2 * ranks) * 2 * ranks
            raise ValueError(
                f"stage {stage.name!r}: {stage.sequence_length} tokens cannot be sharded over {ranks} ranks in zigzag "
                f"order; the length must be a multiple of {2 * ranks}, such as {good}"
            )
        train: Train | None = getattr(stage, "train", None)
        if train is not None and train.deepspeed and not Path(train.deepspeed).is_file():
            raise FileNotFoundError(f"stage {stage.name!r}: no DeepSpeed config at {train.deepspeed}")
    check_disk(recipe.folder)


def check_disk(folder: Path, needed: int = MINIMUM_FREE) -> None:
    """Raise OSError when the disk of ``folder`` has less than ``needed`` bytes free."""
    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise OSError(f"the disk of {folder} has {free / 2**20:.0f} MiB free; {needed / 2**20:.0f} MiB are needed")


def _check_source(name: str, link: str) -> None:
    if Path(link).is_dir() or HUB_ID.fullmatch(link):
        return
    raise FileNotFoundError(
        f"stage {name!r} reads {link!r}: neither a stage before it, a folder, nor a Hub id owner/name"
    )


def _files(stage: Stage) -> list[str]:
    if isinstance(stage, AlignStage) and not stage.data.icons:
        files = [path for path in stage.data.json if Path(path).suffix in (".json", ".jsonl")]
        return [*files, *([stage.data.images] if stage.data.images else [])]
    if isinstance(stage, DpoStage):
        return [*stage.json, stage.videos]
    return []


def describe(recipe: Recipe, world_size: int = 1) -> str:
    """The stages of a recipe in words, a line or two each."""
    lines = [f"{recipe.name}: {len(recipe.stages)} stages, seed {recipe.seed}, writes to {recipe.folder}"]
    for stage in recipe.stages:
        reads = ", ".join(inputs(stage)) or "nothing"
        lines.append(f"  {stage.name} ({stage.kind}) reads {reads}")
        lines.append(f"    {_what(stage, world_size)}")
    return "\n".join(lines)


def _what(stage: Stage, ranks: int) -> str:
    if isinstance(stage, PrepareTextStage):
        return f"{stage.total_tokens:,} tokens of {stage.source}, {stage.sequence_length:,} a sequence"
    if isinstance(stage, EvaluateStage):
        return f"frames {stage.frames}, depths {stage.depths}, {stage.needles} needles, haystack {stage.haystack}"
    train = stage.train
    length = f"{train.steps:,} steps" if train.steps else f"{train.epochs:g} epochs"
    text = f"{length}, lr {train.lr:g} {train.schedule}, {train.precision}, attention {train.attention}"
    if isinstance(stage, TextStage):
        text += f", RoPE base {stage.rope_theta:g}" if stage.rope_theta else ""
        if not stage.data.phases:
            share = 1 if train.attention == "ring" else ranks
            tokens = stage.sequence_length * train.batch_size * train.accumulation * share
            text += f", {stage.sequence_length:,} tokens a sequence, {tokens:,} a step"
    elif isinstance(stage, AlignStage):
        text += f", trains {' and '.join(stage.parts)}, {stage.data.merge}"
    elif isinstance(stage, TowerStage):
        text += f", batch {train.batch_size}"
    elif isinstance(stage, DpoStage):
        text += f", beta {stage.beta:g}, {stage.num_frames} frames"
    return text
