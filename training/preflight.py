"""What can be known to be wrong before the first step: missing inputs, a full disk, a length that cannot be sharded.

Also the text of ``--dry-run``.
"""

from __future__ import annotations

from pathlib import Path

from vniah.files import is_hub_id
from vniah.training import processes
from vniah.training.fit import check_disk
from vniah.training.recipe import Recipe
from vniah.training.stages import (
    AlignStage,
    DpoStage,
    EvaluateStage,
    PrepareTextStage,
    Stage,
    TextStage,
    TowerStage,
    inputs,
)


def check_recipe(recipe: Recipe, world_size: int | None = None, *, only: str | None = None) -> None:
    """Check everything that a recipe (or its one stage ``only``) needs on so many ranks, as the launcher says.

    Raises:
        FileNotFoundError: an input folder or file that is not there.
        ValueError: a sequence length that the ranks cannot share, or steps that the prepared tokens cannot give.
        OSError: too little room on the disk.
    """
    count = processes.world_size() if world_size is None else world_size
    names = {stage.name: stage for stage in recipe.stages}
    for stage in recipe.stages:
        if only not in (None, stage.name):
            continue
        sources = [stage.source, stage.tokenizer] if isinstance(stage, PrepareTextStage) else []
        for link in (*inputs(stage), *sources):
            if link not in names and not Path(link).is_dir() and not is_hub_id(link):
                raise FileNotFoundError(
                    f"stage {stage.name!r} reads {link!r}: neither a stage before it, a folder, nor a Hub id owner/name"
                )
        for path in _files(stage):
            if not Path(path).exists():
                raise FileNotFoundError(
                    f"stage {stage.name!r} needs {path}, which is not there; set it by {stage.name}.…="
                )
        if isinstance(stage, TextStage):
            _check_length(stage, names.get(stage.data.shards or ""), count)
        config = None if isinstance(stage, PrepareTextStage | EvaluateStage) else stage.train.deepspeed
        if config and not Path(config).is_file():
            raise FileNotFoundError(f"stage {stage.name!r}: no DeepSpeed config at {config}")
    check_disk(recipe.folder)


def _files(stage: Stage) -> list[str]:
    if isinstance(stage, AlignStage) and not stage.data.icons:
        files = [path for path in stage.data.json if Path(path).suffix in (".json", ".jsonl")]
        return [*files, *([stage.data.images] if stage.data.images else [])]
    return [*stage.json, stage.videos] if isinstance(stage, DpoStage) else []


def _check_length(stage: TextStage, prepared: Stage | None, count: int) -> None:
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
    wanted = stage.train.steps * stage.sequences_per_step(count)
    # Separators come on top of total_tokens, so this is a few sequences too kind; the stage itself counts them.
    given = -(-prepared.total_tokens // prepared.sequence_length)
    if wanted > given:
        raise ValueError(
            f"stage {stage.name!r}: {stage.train.steps} steps on {count} ranks take {wanted} sequences, but "
            f"{prepared.name!r} prepares about {given}; raise its total_tokens, or give epochs in place of steps"
        )


def describe(recipe: Recipe) -> str:
    """The stages of a recipe in words, a line or two each."""
    lines = [f"{recipe.name}: {len(recipe.stages)} stages, seed {recipe.seed}, writes to {recipe.folder}"]
    for stage in recipe.stages:
        lines.append(f"  {stage.name} ({stage.kind}) reads {', '.join(inputs(stage)) or 'nothing'}")
        lines.append(f"    {_what(stage)}")
    return "\n".join(lines)


def _what(stage: Stage) -> str:
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
            tokens = stage.sequence_length * stage.sequences_per_step(1)
            text += f", {stage.sequence_length:,} tokens a sequence, {tokens:,} a step"
    elif isinstance(stage, AlignStage):
        text += f", trains {' and '.join(stage.parts)}, {stage.data.merge}"
    elif isinstance(stage, TowerStage):
        text += f", batch {train.batch_size}"
    else:
        text += f", beta {stage.beta:g}, {stage.num_frames} frames"
    return text
