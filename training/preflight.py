"""What can be known to be wrong before the first step: missing inputs, a full disk, a length that cannot be sharded.

Also the text of ``--dry-run``.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from vniah.files import is_hub_id
from vniah.training import ranks
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
from vniah.training.text import sequences_per_step

MINIMUM_FREE = 64 << 20


def check_recipe(recipe: Recipe, world_size: int | None = None, *, only: str | None = None) -> None:
    """Check everything a recipe needs.

    Args:
        recipe: what will run.
        world_size: ranks that share the work; as the launcher says unless given.
        only: the one stage that will run.

    Raises:
        FileNotFoundError: an input folder or file that is not there.
        ValueError: a sequence length that the ranks cannot share, or steps that the prepared tokens cannot give.
        OSError: too little room on the disk.
    """
    count = ranks.world_size() if world_size is None else world_size
    names = {stage.name: stage for stage in recipe.stages}
    for stage in recipe.stages:
        if only not in (None, stage.name):
            continue
        for link in (*inputs(stage), *_sources(stage)):
            if link not in names:
                _check_source(stage.name, link)
        for path in _files(stage):
            if not Path(path).exists():
                raise FileNotFoundError(
                    f"stage {stage.name!r} needs {path}, which is not there; set it by {stage.name}.…="
                )
        if isinstance(stage, TextStage):
            _check_length(stage, names.get(stage.data.shards or ""), count)
        train: Train | None = getattr(stage, "train", None)
        if train is not None and train.deepspeed and not Path(train.deepspeed).is_file():
            raise FileNotFoundError(f"stage {stage.name!r}: no DeepSpeed config at {train.deepspeed}")
    check_disk(recipe.folder)


def _check_length(stage: TextStage, prepared: Any, count: int) -> None:
    """Raise ValueError where a sequence cannot be sharded, or the stage before prepares too few or too short ones."""
    if stage.train.attention == "ring" and stage.sequence_length % (2 * count):
        good = stage.sequence_length // (2 * count) * 2 * count
        raise ValueError(
            f"stage {stage.name!r}: {stage.sequence_length} tokens cannot be sharded over {count} ranks in zigzag "
            f"order; the length must be a multiple of {2 * count}" + (f", such as {good}" if good else "")
        )
    if not isinstance(prepared, PrepareTextStage):
        return
    if stage.sequence_length > prepared.sequence_length:
        raise ValueError(
            f"stage {stage.name!r} reads sequences of {stage.sequence_length} tokens, but {prepared.name!r} packs "
            f"{prepared.sequence_length}"
        )
    wanted = stage.train.steps * sequences_per_step(stage, count)
    # Separators come on top of total_tokens, so this is a few sequences too kind; the stage itself counts them.
    given = -(-prepared.total_tokens // prepared.sequence_length)
    if wanted > given:
        raise ValueError(
            f"stage {stage.name!r}: {stage.train.steps} steps on {count} ranks take {wanted} sequences, but "
            f"{prepared.name!r} prepares about {given}; raise its total_tokens, or give epochs in place of steps"
        )


def check_disk(folder: Path, needed: int = MINIMUM_FREE) -> None:
    """Raise OSError when the disk of ``folder`` has less than ``needed`` bytes free."""
    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise OSError(f"the disk of {folder} has {free / 2**20:.0f} MiB free; {needed / 2**20:.0f} MiB are needed")


def _check_source(name: str, link: str) -> None:
    if Path(link).is_dir() or is_hub_id(link):
        return
    raise FileNotFoundError(
        f"stage {name!r} reads {link!r}: neither a stage before it, a folder, nor a Hub id owner/name"
    )


def _sources(stage: Stage) -> list[str]:
    """Corpora and tokenizers, which are folders or Hub ids too."""
    return [stage.source, stage.tokenizer] if isinstance(stage, PrepareTextStage) else []


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
