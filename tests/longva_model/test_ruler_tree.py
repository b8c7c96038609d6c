"""V-RULER and V-NIAH-D on our engine: the tree gives what one forward a cell gives, whatever a cell shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from longva_model.arguments import ModelArgs
from longva_model.backends.loading import nano_folder
from longva_model.run.needle_model import NeedleModel
from vniah.commands.run import evaluate_tasks
from vniah.contract.cost import SHAPES, request_tokens
from vniah.ruler.kinds import KINDS
from vniah.runs.open import open_tasks
from vniah.runs.plan import checkpoint_template, checkpoint_tokens, make_plan
from vniah.visual.task import VisualTask


@pytest.mark.parametrize(
    ("salience", "tasks"), [("full", [*KINDS, "vniah_d"]), ("blend:0.6", ["vruler_distractor", "vruler_count"])]
)
def test_the_tree_gives_what_plain_forwards_give(
    salience: str, tasks: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"CACHE": str(tmp_path), "HAYSTACK": "synthetic:1:40:48x32", "SAMPLES": "1", "CIRCULAR": "1"}
    more = {"SALIENCE": salience, "NEEDLES": "icons:0:2", "DISTANCE": "6"}
    for name, value in (given | more).items():
        monkeypatch.setenv(f"VNIAH_{name}", value)
    grid, args = {"frames": "13", "depths": "0,100"}, {"journal": "none", "chunk_tokens": 31, "device": "cpu"}
    trees, plains = (
        {run.task: run for run in evaluate_tasks("nano", tasks, grid, {"scoring": scoring, **args})}
        for scoring in ("tree", "plain")
    )
    assert set(trees) == set(plains) == set(tasks)
    for name in tasks:
        tree, plain = trees[name], plains[name]
        assert len(tree.cells) == len(plain.cells) > 0
        assert tree.cells["predicted_ids"].tolist() == plain.cells["predicted_ids"].tolist(), tree.task
        for one, other in zip(tree.cells["answer_logprobs"], plain.cells["answer_logprobs"], strict=True):
            assert one == pytest.approx(other, abs=1e-4), tree.task


@pytest.mark.parametrize("names", [["vniah_d"], [*KINDS]])
def test_a_plan_counts_the_tokens_that_a_run_feeds(
    names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"CACHE": tmp_path, "SAMPLES": 1, "CIRCULAR": 1, "DISTANCE": 4, "NEEDLES": "icons:0:2"}.items():
        monkeypatch.setenv(f"VNIAH_{name}", str(value))
    given = {"frames": "13,17", "depths": "60", "haystack": "synthetic:1:40:48x32"}
    tasks = [task for task in open_tasks(names, given) if isinstance(task, VisualTask)]
    folder = str(nano_folder())
    encode, template = checkpoint_tokens(folder), checkpoint_template(folder)
    assert encode is not None
    planned: tuple[list[Any], list[Any]] = ([], [])
    for task in tasks:
        for cell, request in zip(task.cells, task.requests(template), strict=True):
            planned[cell.is_control].append(request)
    plan = make_plan(*planned, SHAPES["nano"], encode=encode)

    model = NeedleModel(ModelArgs(pretrained="nano", journal="none", device="cpu"))
    every = {task.name: task for task in tasks}
    cells = [(task.name, number) for task in tasks for number in range(len(task.rows))]
    model.answers(every, cells[:1])
    assert model._runner is not None
    fed: list[int] = []

    def look(_module: Any, _args: Any, given: dict[str, Any]) -> None:
        fed.append(given["inputs_embeds"].shape[1])

    model._runner.backend.decoder.register_forward_pre_hook(look, with_kwargs=True)
    answers = model.answers(every, cells)
    assert plan.tree_tokens == sum(fed) < plan.every_token
    told = [one.prompt_tokens for one in answers]
    requests = [request for task in tasks for request in task.requests(template)]
    assert told == [request_tokens(one, SHAPES["nano"], lambda text: len(encode(text))) for one in requests]
