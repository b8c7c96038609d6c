"""V-RULER and V-NIAH-D on our engine: the tree gives what one forward a cell gives, whatever a cell shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from vniah.commands.run import evaluate_tasks
from vniah.ruler.kinds import KINDS


@pytest.mark.parametrize(("salience", "tasks"), [("full", [*KINDS, "vniah_d"]), ("blend:0.6", [*KINDS])])
def test_the_tree_gives_what_plain_forwards_give(
    salience: str, tasks: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"CACHE": str(tmp_path), "HAYSTACK": "synthetic:1:40:48x32", "SAMPLES": "1", "CIRCULAR": "1"}
    more = {"SALIENCE": salience, "NEEDLES": "icons:0:2", "DISTANCE": "6"}
    for name, value in (given | more).items():
        monkeypatch.setenv(f"VNIAH_{name}", value)
    grid, args = {"frames": "13,20", "depths": "0,100"}, {"journal": "none", "chunk_tokens": 31, "device": "cpu"}
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
