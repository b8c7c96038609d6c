"""The published figures as data: complete, with their sources, and adding up as the paper says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vniah.plots.published import grid_names, known_train_length, read_published, read_table, tables
from vniah.runs.scoring import column_means, effective_frames, grid_mean, grid_scores

# What the paper's own averages are, by reference section 9.
MEANS = {
    "LongVA-7B": 0.909,
    "VideoRoPE-vanilla": 0.318,
    "VideoRoPE-time": 0.293,
    "VideoRoPE-m-rope": 0.787,
    "VideoRoPE-videorope": 0.911,
    "LLaVA-NeXT-Video-7B-32K": 0.147,
    "LLaVA-NeXT-Video-7B-32K-rope-1e8": 0.284,
    "Qwen2-7B-224K-distractors-0": 0.998,
    "Qwen2-7B-224K-distractors-3": 0.935,
    "Qwen2-7B-224K-distractors-5": 0.920,
    "Llama-3-8B-extended-distractors-3": 0.906,
}
RELEASED = {
    "VideoRoPE-vanilla": "vniah_VideoRoPE-repo_vanilla_rope",
    "VideoRoPE-time": "vniah_VideoRoPE-repo_time_rope",
    "VideoRoPE-m-rope": "vniah_VideoRoPE-repo_m_rope",
    "VideoRoPE-videorope": "vniah_VideoRoPE-repo_t_scale2_change_freq",
    "LongVA-7B": "vniah_LongVA-7B",
    "LLaVA-NeXT-Video-7B-32K": "vniah_LLaVA-NeXT-Video-7B-32K_rope_theta_1000000",
    "LLaVA-NeXT-Video-7B-32K-rope-1e8": "vniah_LLaVA-NeXT-Video-7B-32K_rope_theta_100000000",
    "Qwen2-7B-224K-distractors-0": "text_niah_qwen2_224k_distractors_0",
    "Qwen2-7B-224K-distractors-3": "text_niah_qwen2_224k_distractors_3",
    "Qwen2-7B-224K-distractors-5": "text_niah_qwen2_224k_distractors_5",
    "Llama-3-8B-extended-distractors-3": "text_niah_llama3_8b_distractors_3",
}


def test_every_released_grid_is_there() -> None:
    assert set(grid_names()) == set(MEANS)


@pytest.mark.parametrize("name", MEANS)
def test_a_grid_is_whole_and_averages_as_published(name: str) -> None:
    run = read_published(name)
    assert run.missing() == {}
    assert (len(run.frames), len(run.depths)) == ((15, 6) if run.unit == "frames" else (16, 11))
    assert round(grid_mean(run.cells), 3) == pytest.approx(MEANS[name])
    assert run.settings["published"]["source"]


@pytest.mark.parametrize(("name", "file"), RELEASED.items())
def test_a_grid_holds_the_released_scores(name: str, file: str, shared: Path) -> None:
    released = json.loads((shared / "data" / "published" / f"{file}.json").read_text())
    scores = {tuple(int(value) for value in list(row.values())[:2]): row["Score"] for row in released}
    assert grid_scores(read_published(name).cells) == pytest.approx(scores)


def test_longva_is_perfect_to_1200_frames_and_effective_to_2200() -> None:
    run = read_published("LongVA-7B")
    means = column_means(run.cells)
    assert all(means[frames] == 1 for frames in range(200, 1201, 200))
    assert (means[2000], means[3000]) == (pytest.approx(0.9), pytest.approx(0.7667, abs=1e-4))
    assert effective_frames(run.cells) == 2200


def test_training_lengths_are_the_papers() -> None:
    assert known_train_length("lmms-lab/LongVA-7B") == pytest.approx(224_000 / 144, abs=0.1)
    assert known_train_length("/models/LLaVA-NeXT-Video-7B-32K/") == pytest.approx(32_768 / 144, abs=0.1)
    assert known_train_length("Qwen2-7B-Instruct-224K", "tokens") == 224_000
    assert known_train_length("LongVA-7B", "tokens") is None
    assert known_train_length("somebody/else") is None
    assert (known_train_length("nano"), known_train_length("nano", "tokens")) == (1024, 4096)
    assert known_train_length("somebody/nano") is None


def test_tables_are_rectangular_and_name_their_source() -> None:
    assert [table.name for table in tables()] == ["table6", "table8", "table9", "table10"]
    for table in tables():
        number = table.name.removeprefix("table")
        assert f"Table {number}" in table.source
        assert all(len(row.scores) == len(table.columns) for row in table.rows)
        assert all(column.tasks and column.metric for column in table.columns)


def test_video_mme_overall_is_the_mean_of_its_thirds() -> None:
    for row in read_table("table6").rows:
        *parts, overall = row.scores
        # Durations have equally many questions; the parts are rounded, some rows by a little more.
        assert sum(parts) / 3 == pytest.approx(overall, abs=0.08), row


def test_mlvu_averages_are_means_of_their_tasks() -> None:
    table = read_table("table10")
    names = [column.name for column in table.columns]
    for row in table.rows:
        scores = dict(zip(names, row.scores, strict=True))
        assert (scores["VS"] + scores["SSC"]) / 2 == pytest.approx(scores["G-Avg"], abs=0.0051), row
        choice = [scores[name] for name in ("TR", "AR", "NQA", "ER", "PQA", "AO", "AC")]
        if row.model != "TimeChat":  # printed 30.9, where its tasks average 26.5
            assert sum(choice) / 7 == pytest.approx(scores["M-Avg"], abs=0.15), row


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(ValueError, match=r"no published grid 'x'; expected one of .*LongVA-7B"):
        read_published("x")
    with pytest.raises(ValueError, match=r"no published table 'table7'; expected one of table6, table8"):
        read_table("table7")
