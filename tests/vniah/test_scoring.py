"""Scores as pure functions."""

from __future__ import annotations

import pickle

import pytest

from vniah.runs import scoring
from vniah.runs.run import cells_table


def cell(frames: int, depth: int | None, correct: bool, needle: str = "n") -> dict[str, object]:
    return {"num_frames": frames, "depth_percent": depth, "needle": needle, "correct": correct}


@pytest.mark.parametrize(
    ("predicted", "answer", "right"),
    [([5], [5], True), ([5, 6], [5, 6], True), ([5, 7], [5, 6], False), ([], [], False)],
)
def test_every_answer_token_must_be_the_argmax(predicted: list[int], answer: list[int], right: bool) -> None:
    assert scoring.teacher_forced_match(predicted, answer) is right


def test_a_scored_pair_survives_what_lmms_eval_does_to_it() -> None:
    pair = scoring.ScoredPair(-0.5, True, {"predicted_ids": [1, 2], "predicted": 'a "quoted" ) word'})
    assert pair == (-0.5, True)
    for form in (pair, str(pair), [str(pair)], pickle.loads(pickle.dumps(pair))):
        assert scoring.parse_loglikelihood(form) == (-0.5, True)
        assert scoring.parse_details(form)["predicted_ids"] == [1, 2]
        assert scoring.parse_details(form)["predicted"] == 'a "quoted" ) word'


def test_a_foreign_pair_has_no_details() -> None:
    assert scoring.parse_loglikelihood("(-1.25, False)") == (-1.25, False)
    assert scoring.parse_details("(-1.25, False)") == {}
    assert scoring.parse_details((-1.25, False)) == {}
    with pytest.raises(ValueError, match="pair"):
        scoring.parse_loglikelihood("nonsense")
    with pytest.raises(ValueError, match="finite"):
        scoring.ScoredPair(float("-inf"), False)


def test_aggregation_leaves_controls_out() -> None:
    rows = [cell(4, 0, True), cell(4, 50, False), cell(8, 0, True), cell(8, 50, True), cell(8, None, True)]
    cells = cells_table(rows)
    assert scoring.grid_scores(cells) == {(4, 0): 1.0, (4, 50): 0.0, (8, 0): 1.0, (8, 50): 1.0}
    assert scoring.column_means(cells) == {4: 0.5, 8: 1.0}
    assert scoring.grid_mean(cells) == 0.75
    assert scoring.control_mean(cells) == 1.0
    assert scoring.control_mean(cells[:4]) is None


@pytest.mark.parametrize(("scores", "frames"), [((10, 9, 9), 12), ((10, 8, 10), 4), ((8, 10, 10), 0), ((9, 9, 8), 8)])
def test_effective_frames_end_at_the_first_weak_column(scores: tuple[int, ...], frames: int) -> None:
    cells = cells_table(
        cell(column, 0, number < right, str(number))
        for column, right in zip((4, 8, 12), scores, strict=True)
        for number in range(10)
    )
    assert scoring.effective_frames(cells) == frames
