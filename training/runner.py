"""Runs the stages of a recipe in order, each reading what one before it wrote; what is done is not done again.

A stage's folder holds ``model/`` (its result), ``run/`` (checkpoints, metrics.jsonl) and ``done.json``, which
is written last. ``python -m vniah.training.runner FOLDER STAGE`` runs one stage of a folder's recipe.json.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vniah.files import read_json
from vniah.training.fit import DONE
from vniah.training.identity import check_identity, write_json
from vniah.training.progress import StageBars
from vniah.training.ranks import rank, wait_for, world_size
from vniah.training.recipe import Recipe, build_recipe
from vniah.training.stages import Stage, as_data, inputs

MODULES = {
    "prepare_text": "vniah.training.data.prepare",
    "text": "vniah.training.text",
    "tower": "vniah.training.nano.tower",
    "align": "vniah.training.align",
    "dpo": "vniah.training.dpo",
    "evaluate": "vniah.training.nano.evaluate",
}
# Kinds that do not share their work over ranks.
ALONE = ("prepare_text", "evaluate")


def run_recipe(recipe: Recipe, *, say: Callable[[str], None] = print, only: str | None = None) -> None:
    """Run every stage that is not done, ``recipe.parallel`` at a time where they do not wait for each other.

    Args:
        recipe: what to run.
        say: called with a line when a stage starts and when it ends, on the first rank.
        only: this stage alone.

    Raises:
        ValueError: the output folder holds another recipe, or a stage failed (naming its log).
    """
    from vniah.training.preflight import check_recipe

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
        say = _nothing
    waiting = [stage for stage in recipe.stages if only in (None, stage.name)]
    for stage in list(waiting):
        if is_done(folder, stage.name):
            say(f"{stage.name}: done before")
            waiting.remove(stage)
    if recipe.parallel == 1 or only is not None or world_size() > 1:
        for stage in waiting:
            say(f"{stage.name}: started")
            say(f"{stage.name}: {_summary(run_stage(recipe, stage))}")
        return
    _run_parallel(recipe, waiting, say)


def _nothing(_: str) -> None:
    """What the other ranks say."""


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
    report["folders"] = [name for name in ("model", "shards") if (folder / name).is_dir()]
    if rank() == 0:
        write_json(folder / DONE, report)
    return dict(report)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """With ``count`` CPU threads for torch; with as many as it has for 0."""
    if not count:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
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
        result = recipe.folder / link / ("shards" if names[link].kind == "prepare_text" else "model")
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


def _run_parallel(recipe: Recipe, waiting: list[Stage], say: Callable[[str], None]) -> None:
    folder = recipe.folder
    running: dict[str, tuple[Any, Any]] = {}
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // recipe.parallel)))
    bars = StageBars(folder)
    say = bars.beside(say)
    try:
        while waiting or running:
            for stage in list(waiting):
                links = [link for link in inputs(stage) if link in {s.name for s in recipe.stages}]
                if len(running) < recipe.parallel and all(is_done(folder, link) for link in links):
                    (folder / stage.name).mkdir(parents=True, exist_ok=True)
                    log = (folder / stage.name / "log.txt").open("a", encoding="utf-8")
                    command = [sys.executable, "-m", "vniah.training.runner", str(folder), stage.name]
                    running[stage.name] = subprocess.Popen(command, env=environment, stdout=log, stderr=log), log
                    waiting.remove(stage)
                    say(f"{stage.name}: started")
                    bars.add(stage.name, getattr(getattr(stage, "train", None), "steps", None))
            time.sleep(0.2)
            bars.update()
            for name, (process, log) in list(running.items()):
                if process.poll() is None:
                    continue
                log.close()
                del running[name]
                bars.remove(name)
                if process.returncode or not is_done(folder, name):
                    raise ValueError(f"stage {name!r} failed: {_last_line(folder / name / 'log.txt')}")
                say(f"{name}: {_summary(read_json(folder / name / DONE))}")
    finally:
        bars.close()
        for process, log in running.values():
            process.terminate()
            process.wait()
            log.close()


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"{lines[-1] if lines else 'no output'} (whole log: {path})"


def _summary(report: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in report.items() if not isinstance(value, dict | list))


def main(arguments: list[str]) -> None:
    """Run one stage of the recipe.json in a folder."""
    folder, name = Path(arguments[0]), arguments[1]
    recipe = build_recipe(read_json(folder / "recipe.json"), str(folder))
    run_stage(recipe, recipe.stage(name))


if __name__ == "__main__":
    main(sys.argv[1:])
