"""Checks, describes and runs the stages of a recipe in order, each reading what one before it wrote.

What can be known to be wrong before the first step is found there: missing inputs, a full disk, a length that cannot be
sharded. What is done is not done again.

A stage's folder holds ``model/`` (its result), ``run/`` (checkpoints, metrics.jsonl) and ``done.json``, which
is written last. ``python -m vniah.training.runner FOLDER STAGE`` runs one stage of a folder's recipe.json.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vniah.files import is_hub_id, read_json
from vniah.training import stages
from vniah.training.checkpoints import check_identity, sealed_steps, write_json
from vniah.training.fit import METRICS, check_disk
from vniah.training.processes import rank, wait_for, world_size
from vniah.training.recipe import Recipe, build_recipe
from vniah.training.stages import Stage, as_data, inputs

MODULES = {
    "prepare_text": "vniah.training.data.prepare",
    "prepare_images": "vniah.training.data.llava",
    "text": "vniah.training.text",
    "tower": "vniah.training.nano.tower",
    "calibrate": "vniah.training.nano.calibrate",
    "align": "vniah.training.align",
    "dpo": "vniah.training.dpo",
    "evaluate": "vniah.training.evaluate",
}
DONE = "done.json"
TELL_SECONDS = 30.0  # how often stages that run beside each other say how far they are
# Kinds that do not share their work over ranks.
ALONE = ("prepare_text", "prepare_images", "evaluate")
# What others read of a stage, a folder of its own.
RESULTS = {"prepare_text": "shards", "prepare_images": "index"}


def check_recipe(recipe: Recipe, ranks: int | None = None, *, only: str | None = None) -> None:
    """Check everything that a recipe (or its one stage ``only``) needs on so many ranks, as the launcher says.

    Raises:
        FileNotFoundError: an input folder or file that is not there.
        ValueError: a sequence length that the ranks cannot share, or steps that the prepared tokens cannot give.
        OSError: too little room on the disk.
    """
    count = world_size() if ranks is None else ranks
    names = {stage.name: stage for stage in recipe.stages}
    for stage in recipe.stages:
        if only not in (None, stage.name):
            continue
        sources = [stage.source, stage.tokenizer] if isinstance(stage, stages.PrepareTextStage) else []
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
        if isinstance(stage, stages.TextStage):
            _check_length(stage, names.get(stage.data.shards or ""), count)
    check_disk(recipe.folder)


def _files(stage: Stage) -> list[str]:
    if isinstance(stage, stages.AlignStage | stages.PrepareImagesStage) and not stage.data.icons:
        files = [path for path in stage.data.json if Path(path).suffix in (".json", ".jsonl")]
        return [*files, *([stage.data.images] if stage.data.images else [])]
    if isinstance(stage, stages.EvaluateStage):
        return [stage.haystack] if stage.frames and Path(stage.haystack).suffix else []
    return [*stage.json, stage.videos] if isinstance(stage, stages.DpoStage) else []


def _check_length(stage: stages.TextStage, prepared: Stage | None, count: int) -> None:
    """Raise ValueError where a sequence cannot be sharded, or the stage before prepares too few or too short ones."""
    ring = stage.train.ring_of(count)
    if stage.train.attention == "ring" and stage.sequence_length % (2 * ring):
        good = stage.sequence_length // (2 * ring) * 2 * ring
        raise ValueError(
            f"stage {stage.name!r}: {stage.sequence_length} tokens cannot be sharded over {ring} ranks in zigzag "
            f"order; the length must be a multiple of {2 * ring}" + (f", such as {good}" if good else "")
        )
    if not isinstance(prepared, stages.PrepareTextStage):
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
    count = f"{len(recipe.stages)} stage{'s' if len(recipe.stages) > 1 else ''}"
    lines = [f"{recipe.name}: {count}, seed {recipe.seed}, writes to {recipe.folder}"]
    for stage in recipe.stages:
        lines.append(f"  {stage.name} ({stage.kind}) reads {', '.join(inputs(stage)) or 'nothing'}")
        lines.append(f"    {_what(stage)}")
    return "\n".join(lines)


def _what(stage: Stage) -> str:
    if isinstance(stage, stages.PrepareTextStage):
        return f"{stage.total_tokens:,} tokens of {stage.source}, {stage.sequence_length:,} a sequence"
    if isinstance(stage, stages.PrepareImagesStage):
        return f"samples of {', '.join(stage.data.json)}, {stage.data.merge}, {stage.workers} workers"
    if isinstance(stage, stages.EvaluateStage):
        needles = stage.needle_set or f"{stage.needles} icons"
        film = f"frames {stage.frames}, depths {stage.depths}, needles {needles}, haystack {stage.haystack}"
        text = f"text NIAH {stage.text_lengths}, depths {stage.text_depths}"
        parts = ((stage.frames, film), (stage.text_lengths, text), (stage.held_out, f"loss on {stage.held_out}"))
        return "; ".join(part for asked, part in parts if asked)
    train = stage.train
    length = f"{train.steps:,} steps" if train.steps else f"{train.epochs:g} epochs"
    text = f"{length}, lr {train.lr:g} {train.schedule}, {train.precision}, attention {train.attention}"
    if isinstance(stage, stages.TextStage):
        text += f", RoPE base {stage.rope_theta:g}" if stage.rope_theta else ""
        if not stage.data.phases:
            tokens = stage.sequence_length * stage.sequences_per_step(1)
            text += f", {stage.sequence_length:,} tokens a sequence, {tokens:,} a step"
    elif isinstance(stage, stages.AlignStage):
        text += f", trains {' and '.join(stage.parts)}, {stage.data.merge}"
    elif isinstance(stage, stages.TowerStage | stages.CalibrateStage):
        text += f", batch {train.batch_size}"
    else:
        text += f", beta {stage.beta:g}, {stage.num_frames} frames"
    return text


def run_recipe(recipe: Recipe, *, say: Callable[[str], None] = print, only: str | None = None) -> None:
    """Run every stage that is not done, ``recipe.parallel`` at a time where they do not wait for each other.

    ``say`` is called with a line when a stage starts and when it ends, on the first rank. ``only``: this stage alone.

    Raises:
        ValueError: the output folder holds another recipe, or a stage failed (naming its log).
    """
    folder = recipe.folder
    folder.mkdir(parents=True, exist_ok=True)
    check_recipe(recipe, only=only)
    if any(stage.kind == "dpo" and only in (None, stage.name) for stage in recipe.stages):
        from vniah.training.dpo import check_trl

        check_trl()
    check_identity(folder, as_data(recipe))
    if rank() == 0:
        write_json(folder / "recipe.json", as_data(recipe))
    else:
        say = list[str]().append  # the other ranks say nothing
    wanted = [stage for stage in recipe.stages if only in (None, stage.name)]
    waiting = [stage for stage in wanted if not is_done(folder, stage.name)]
    for stage in wanted:
        if stage not in waiting:
            say(f"{stage.name}: done before")
    if recipe.parallel == 1 or only is not None or world_size() > 1:
        for stage in waiting:
            say(f"{stage.name}: started")
            say(f"{stage.name}: {_summary(run_stage(recipe, stage))}")
        return
    _run_parallel(recipe, waiting, say)


def run_stage(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    """Run one stage in this process and write its done.json.

    What is no training is done by the first rank, and the others wait for it.
    """
    folder = recipe.folder / stage.name
    folder.mkdir(parents=True, exist_ok=True)
    if stage.kind in ALONE and rank() > 0:
        wait_for(folder / DONE)
        return {}
    module = importlib.import_module(MODULES[stage.kind])
    started = time.time()
    with _threads(getattr(getattr(stage, "train", None), "threads", 0)):
        report = module.run(stage, folder, seed=recipe.seed, resolve=resolver(recipe))
    report["wall_seconds"] = round(time.time() - started, 1)
    report["folders"] = [name for name in ("model", "shards", "index") if (folder / name).is_dir()]
    if rank() == 0:
        write_json(folder / DONE, report)
    return dict(report)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """With ``count`` CPU threads for torch; with as many as it has for 0."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def resolver(recipe: Recipe) -> Callable[[str], str]:
    """Maps a stage's name to the model (or shards) it wrote; anything else is a folder or a Hub id already."""
    names = {stage.name: stage for stage in recipe.stages}

    def resolve(link: str) -> str:
        if link not in names:
            return link
        result = recipe.folder / link / RESULTS.get(names[link].kind, "model")
        if not result.is_dir():
            raise FileNotFoundError(f"stage {link!r} has written no {result}; run it first")
        return str(result)

    return resolve


def is_done(folder: Path, name: str) -> bool:
    """Whether a stage has ended: its done.json is whole, and what it wrote is there."""
    try:
        report = read_json(folder / name / DONE)
    except (OSError, ValueError):
        return False
    return isinstance(report, dict) and all((folder / name / one).is_dir() for one in report.get("folders", ()))


def what_goes_on(recipe: Recipe) -> str:
    """What the same command does after a stop: stages that began and have not ended, and where each goes on."""
    begun = []
    for stage in recipe.stages:
        if (recipe.folder / stage.name).is_dir() and not is_done(recipe.folder, stage.name):
            steps = sealed_steps(recipe.folder / stage.name / "run")
            begun.append(f"{stage.name} goes on from checkpoint-{steps[-1]}" if steps else f"{stage.name} starts over")
    return "with the same command " + " and ".join(begun) if begun else ""


def _run_parallel(recipe: Recipe, waiting: list[Stage], say: Callable[[str], None]) -> None:
    folder, names = recipe.folder, {stage.name for stage in recipe.stages}
    running: dict[str, tuple[Any, Any]] = {}
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // recipe.parallel)))
    told, tell_at = dict[str, Any](), time.monotonic() + TELL_SECONDS
    try:
        while waiting or running:
            for stage in list(waiting):
                ready = all(is_done(folder, link) for link in inputs(stage) if link in names)
                if ready and len(running) < recipe.parallel:
                    (folder / stage.name).mkdir(parents=True, exist_ok=True)
                    log = (folder / stage.name / "log.txt").open("a", encoding="utf-8")
                    command = [sys.executable, "-m", "vniah.training.runner", str(folder), stage.name]
                    running[stage.name] = subprocess.Popen(command, env=environment, stdout=log, stderr=log), log
                    waiting.remove(stage)
                    say(f"{stage.name}: started")
            time.sleep(0.2)
            if time.monotonic() >= tell_at:
                tell_at += TELL_SECONDS
                for name in running:
                    event = last_event(folder / name / "run" / METRICS)
                    if event and event != told.get(name):
                        told[name] = event
                        say(f"{name}: step {event['step']:,}, loss {event['loss']:.3f}")
            for name, (process, log) in list(running.items()):
                if process.poll() is None:
                    continue
                log.close()
                del running[name]
                if process.returncode or not is_done(folder, name):
                    path = folder / name / "log.txt"
                    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
                    last = next((line for line in reversed(lines) if line.strip()), "no output")
                    raise ValueError(f"stage {name!r} failed: {last} (whole log: {path})")
                say(f"{name}: {_summary(read_json(folder / name / DONE))}")
    finally:
        for process, log in running.values():
            process.terminate()
            process.wait()
            log.close()


def last_event(path: Path) -> dict[str, Any] | None:
    """The last whole line with a loss of a metrics.jsonl that may be being written; ``None`` where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        with suppress(json.JSONDecodeError):
            if isinstance(event := json.loads(line), dict) and "loss" in event:
                return event
    return None


def _summary(report: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in report.items() if not isinstance(value, dict | list))


if __name__ == "__main__":
    started = build_recipe(read_json(Path(sys.argv[1]) / "recipe.json"), sys.argv[1])
    run_stage(started, started.stage(sys.argv[2]))
