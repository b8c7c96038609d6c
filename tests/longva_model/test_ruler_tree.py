"""V-RULER and V-NIAH-D on our engine: the tree gives what one forward a cell gives, whatever a cell shows."""

from __future__ import annotations

from pathlib import Path

import pytest

import vniah
from vniah.ruler.kinds import KINDS


@pytest.mark.parametrize("task", [*KINDS, "vniah_d"])
@pytest.mark.parametrize("salience", ["full", "blend:0.6"])
def test_the_tree_gives_what_plain_forwards_give(
    task: str, salience: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if task == "vniah_d" and salience != "full":
        pytest.skip("look-alikes are whole frames")
    given = {"CACHE": str(tmp_path), "HAYSTACK": "synthetic:1:40:48x32", "SAMPLES": "2", "CIRCULAR": "1"}
    more = {"SALIENCE": salience, "NEEDLES": "icons:0:2", "DISTANCE": "6"}
    for name, value in (given | more).items():
        monkeypatch.setenv(f"VNIAH_{name}", value)
    grid = {"frames": "13,24", "depths": "0,50,100"}
    tree, plain = (
        vniah.evaluate("nano", task, scoring=scoring, journal="none", chunk_tokens=31, device="cpu", **grid).cells
        for scoring in ("tree", "plain")
    )
    assert len(tree) == len(plain) > 0
    assert tree["predicted_ids"].tolist() == plain["predicted_ids"].tolist()
    for one, other in zip(tree["answer_logprobs"], plain["answer_logprobs"], strict=True):
        assert one == pytest.approx(other, abs=1e-4)
