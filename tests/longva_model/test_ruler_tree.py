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
from vniah.visual.kinds import read_settings
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


# Settings of each kind, chosen by hand to reach every axis and its ends; each row is a task of its own.
AXES: dict[str, list[dict[str, Any]]] = {
    "lookalikes": [
        {"distractors": 1, "distance": 2, "seeds": 2, "frames": "5", "depths": "0,100"},
        {"distractors": 3, "distance": 1, "frames": "6", "depths": "50"},
    ],
    "vruler_distractor": [
        {"distractors": 0, "likeness": 0, "salience": "blend:0.4:0.9"},
        {"distractors": 3, "likeness": 1, "seeds": 2},
        {"distractors": 4, "likeness": 2, "frames": "5"},
        {"distractors": 3, "likeness": 0, "frames": "4"},
    ],
    "vruler_count": [
        {"num_needles": 1, "distractors": 0, "frames": "1"},
        {"num_needles": 4, "distractors": 2, "salience": "blend", "seeds": 2},
        {"num_needles": 1, "distractors": 3, "salience": "blend"},
    ],
    "vruler_order": [
        {"num_needles": 2, "circular": 1, "seeds": 2, "frames": "2"},
        {"num_needles": 5, "salience": "blend", "frames": "5"},
    ],
    "vruler_keys": [
        {"num_needles": 2, "distractors": 0, "circular": 1, "salience": "blend:0.3"},
        {"num_needles": 4, "distractors": 2, "seeds": 2},
    ],
    "vruler_chain": [
        {"num_needles": 2, "distractors": 2, "frames": "5", "seeds": 2},
        {"num_needles": 5, "distractors": 0, "salience": "blend"},
    ],
    "vruler_when": [{"circular": 1, "frames": "4"}, {"salience": "blend", "seeds": 2}],
    "vruler_clip": [
        {"clip_seconds": 5, "circular": 1, "salience": "blend", "frames": "5"},
        {"clip_seconds": 10, "seeds": 2, "frames": "10"},
    ],
}


def test_the_tree_gives_what_plain_forwards_give_over_all_axes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Films as short as a kind takes, ends of the film, twice the film, pictures in frames' places: in one tree."""
    monkeypatch.setenv("VNIAH_CACHE", str(tmp_path))
    common = {"frames": "7", "depths": "0,100", "haystack": "synthetic:1:12:32x32", "needles": "icons:0:1"}
    tasks: dict[str, Any] = {}
    for kind, rows in AXES.items():
        for number, row in enumerate(rows):
            name = f"{kind}-{number}"
            settings = read_settings({"kind": kind, **common, "samples": 1, **row})
            tasks[name] = VisualTask(name, "teacher-forced", settings)
            assert len(tasks[name].haystacks) == row.get("seeds", 1)
    cells = [(name, number) for name, task in tasks.items() for number in range(len(task.rows))]
    told = []
    for scoring in ("tree", "plain"):
        args = ModelArgs(pretrained="nano", journal="none", device="cpu", chunk_tokens=29, scoring=scoring)
        told.append(NeedleModel(args).answers(tasks, cells))
    for cell, tree, plain in zip(cells, *told, strict=True):
        assert tree.predicted_ids == plain.predicted_ids and tree.prompt_tokens == plain.prompt_tokens, cell
        assert tree.answer_logprobs == pytest.approx(plain.answer_logprobs, abs=1e-4), cell
    # Cells are told apart, or their equality would say nothing.
    assert len({tuple(one.answer_logprobs) for one in told[0]}) > len(cells) / 3


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
