"""The V-NIAH tasks through lmms-eval: rows, metrics, and the reference's predictions end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lmms_requests import cells_of, evaluated
from PIL import Image

from vniah.runs.scoring import ScoredPair

pytest.importorskip("lmms_eval")

QWEN_ARGS = "device=cpu,device_map=cpu,max_num_frames=8,min_pixels=3136,max_pixels=12544"
PARITY_ARGS = "pretrained={},dtype=float32,device=cpu,scoring={}"


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder haystack of 8 frames, two needles, and a grid of 2 x 2 cells by environment."""
    hay, needles = tmp_path / "hay", tmp_path / "needles"
    hay.mkdir()
    needles.mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        Image.fromarray(rng.integers(0, 255, (36, 64, 3), dtype=np.uint8)).save(hay / f"{number}.png")
    listed = []
    for name, question, answer in (
        ("cat", "\nFind the cat. Where is it?\nA. Roof\nB. Tree\nAnswer with the option's letter.", "B"),
        ("mug", "Find the mug. What colour is it?", "blue"),
    ):
        Image.fromarray(rng.integers(0, 255, (50, 40, 3), dtype=np.uint8)).save(needles / f"{name}.png")
        listed.append({"id": name, "file": f"{name}.png", "question": question, "answer": answer})
    (needles / "needles.json").write_text(json.dumps(listed))
    for key, value in {
        "VNIAH_FRAMES": "4,8",
        "VNIAH_DEPTHS": "0,50",
        "VNIAH_HAYSTACK": str(hay),
        "VNIAH_NEEDLES": str(needles),
        "VNIAH_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(key, value)
    return tmp_path


def make_task(**metadata: Any) -> Any:
    from vniah.tasks.forced import ForcedTask

    metadata = {"version": 1.0, "family": "vniah", **metadata}
    return ForcedTask(config={"task": "vniah", "class": ForcedTask, "metadata": metadata})


def generated_rows() -> Any:
    """The rows of `vniah_generate` as lmms-eval has them made: of its own YAML, line by line."""
    from vniah.lmms_plugin import tasks_dir
    from vniah.tasks import generated

    lines = (tasks_dir() / "vniah" / "vniah_generate.yaml").read_text().split("\n")
    return generated.process_docs([{"text": line} for line in lines])


def test_rows_cover_the_grid_and_its_controls(small: Path) -> None:
    task = make_task()
    rows = list(task.test_docs())
    assert len(rows) == 2 * 2 * 2 + 2 * 2
    assert [row["needle_index"] for row in rows if row["num_frames"] == 8] == [0, 0, 4, 4, -1, -1]
    assert sum(row["control"] for row in rows) == 4
    assert task.config.metadata["haystack_frames"] == 8
    assert len(task.config.metadata["haystack_fingerprint"]) > 16
    assert task.config.metadata["frames"] == "4,8"


def test_settings_come_from_metadata_where_the_environment_is_silent(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VNIAH_FRAMES")
    task = make_task(frames="2", depths="100")
    assert {row["num_frames"] for row in task.test_docs()} == {2}
    # The environment's depths win over the metadata's.
    assert {row["depth_percent"] for row in task.test_docs()} == {0, 50, -1}


def test_a_haystack_that_is_too_short_names_both_lengths(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VNIAH_FRAMES", "4,9")
    with pytest.raises(ValueError, match=r"(?s)8.*9|9.*8"):
        make_task()


def test_requests_carry_a_string_target_and_a_visual_of_segments(small: Path) -> None:
    task = make_task()
    task.build_all_requests(cache_requests=True)
    assert len(task.instances) == 12
    context, target, doc_to_visual, doc_id, name, split = task.instances[2].args
    assert (target, name, split) == ("B", "vniah", "test")
    (video,) = doc_to_visual(task.dataset[split][doc_id])
    assert len(video) == 5 and video.preprocess == "pad"
    assert "Find the cat" in context


def test_metrics_by_hand(small: Path) -> None:
    task = make_task()
    collected: dict[str, list[Any]] = {}
    for row in task.test_docs():
        # Right at 4 frames, wrong at 8; one control of four is guessed.
        right = (row["num_frames"] == 4 and not row["control"]) or (row["control"] and row["needle"] == "cat")
        pair = ScoredPair(-0.5, bool(right), {"predicted": "B", "predicted_ids": [3], "answer_ids": [3]})
        # As lmms-eval hands it over: a string in a list.
        for name, value in task.process_results(row, [str(pair)]).items():
            collected.setdefault(name, []).append(value)
    figures = {name: aggregate(collected[name]) for name, aggregate in task.aggregation().items()}
    assert figures["vniah_acc"] == 0.5
    assert figures["vniah_control"] == 0.5
    assert figures["vniah_effective_frames"] == 4
    assert dict(figures["vniah_grid"]) == {
        "4": {"0": 1.0, "50": 1.0, "control": 0.5},
        "8": {"0": 0.0, "50": 0.0, "control": 0.5},
    }
    sample = collected["vniah_acc"][0]
    wanted = {
        "num_frames", "depth_percent", "needle", "needle_index", "correct", "predicted_ids", "answer_ids", "predicted",
        "answer", "answer_logprobs", "control",
    }  # fmt: skip
    assert wanted <= set(sample) and sample["predicted_ids"] == [3]
    assert collected["vniah_control"][0]["depth_percent"] is None
    json.dumps(figures)


def test_a_task_is_added_by_copying_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest real example of CONTRIBUTING.md: another name, and inputs of its own."""
    from lmms_eval.tasks import TaskManager

    import vniah
    from vniah.lmms_plugin import tasks_dir

    folder = tmp_path / "mine"
    folder.mkdir()
    inputs = "  frames: 4,6\n  depths: 50\n  haystack: synthetic:3\n  needles: icons:1:1\n"
    for name in ("vniah_nano", "vniah_generate"):
        text = (tasks_dir() / "vniah" / f"{name}.yaml").read_text().replace(name, f"my_{name}")
        head, _, metadata = text.partition("  frames: 16")
        (folder / f"my_{name}.yaml").write_text((head if metadata else text) + inputs)
    monkeypatch.setenv("VNIAH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    manager = TaskManager("ERROR", include_path=str(folder), include_defaults=False, model_name="longva_ring")
    tasks = ("my_vniah_nano", "my_vniah_generate")
    results = evaluated("longva_ring", "pretrained=nano,device=cpu,journal=none", *tasks, task_manager=manager)
    for name, scoring in (("my_vniah_nano", "teacher-forced"), ("my_vniah_generate", "generated")):
        told = results["results"][name]["vniah_provenance,none"]
        assert (told["frames"], told["cells"], told["controls"], told["scoring"]) == ("4,6", 2, 2, scoring)
        assert results["n-samples"][name]["effective"] == 4 and "vniah_acc,none" in results["results"][name]
    # Under tasks/ it is a task of ``vniah run`` and ``vniah.evaluate`` too.
    monkeypatch.setattr("vniah.runs.open.tasks_dir", lambda: folder)
    assert list(vniah.evaluate("nano", "my_vniah_nano").table().columns) == [4, 6]
    assert set(vniah.evaluate(lambda mp4, question: "red", "my_vniah_generate").cells["predicted"]) == {"red"}


def test_generated_answers_are_matched_by_letter_and_by_word(small: Path) -> None:
    from vniah.tasks import generated

    rows = generated_rows()
    cat = next(row for row in rows if row["needle"] == "cat")
    mug = next(row for row in rows if row["needle"] == "mug" and not row["control"])
    assert generated.process_results(cat, ["(B) Tree"])["vniah_acc"]["correct"]
    assert not generated.process_results(cat, ["Tree"])["vniah_acc"]["correct"]
    assert generated.process_results(mug, ["It is blue."])["vniah_acc"]["correct"]
    assert generated.doc_to_text(mug).startswith("Find the mug")
    (path,) = generated.doc_to_visual(mug)
    from vniah.haystack import open_video

    # Four frames of haystack and the needle, and one more of the haystack for an even number.
    assert len(open_video(path, 10**9)) == 6


def test_an_answer_that_is_empty_is_said(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Some models of lmms-eval write one where they fail."""
    from vniah.tasks import generated

    rows = generated_rows()
    assert not generated.process_results(rows[0], ["  "])["vniah_acc"]["correct"]
    generated.process_results(rows[1], [""])
    said = "vniah_generate: some answers are empty: a model may write one where it fails"
    assert capsys.readouterr().err.count(said) == 1
    generated.process_results(rows[2], ["B"])
    assert generated.provenance([rows[0]["provenance"]])["warnings"][-1].startswith(said)


def test_more_videos_than_the_cache_holds(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model may ask for every video before it reads one."""
    from vniah.haystack import open_video
    from vniah.tasks import generated

    monkeypatch.setenv("VNIAH_CACHE_GB", "0.00001")
    rows = generated_rows()
    paths = [generated.doc_to_visual(row)[0] for row in rows]
    for row, path in zip(rows, paths, strict=True):
        assert len(open_video(path, 10**9)) == row["num_video_frames"]


@pytest.mark.parametrize("scoring", [pytest.param("plain", marks=pytest.mark.slow), "tree"])
def test_the_references_predictions_on_every_cell(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scoring: str
) -> None:
    parity = shared / "parity"
    for key, value in {
        "VNIAH_FRAMES": "4,8",
        "VNIAH_DEPTHS": "0,50,100",
        "VNIAH_HAYSTACK": str(parity / "niah" / "haystack"),
        "VNIAH_NEEDLES": str(parity / "niah" / "needles"),
        "VNIAH_CACHE": str(tmp_path),
    }.items():
        monkeypatch.setenv(key, value)
    results = evaluated("longva_ring", PARITY_ARGS.format(parity / "LongVA-tiny-unires", scoring), "vniah")
    found = {}
    for sample in results["samples"]["vniah"]:
        scored = sample.get("vniah_acc")
        if scored:
            found[scored["num_frames"], scored["depth_percent"], scored["needle"]] = scored
    expected = json.loads((parity / "expected_niah.json").read_text())["cells"]
    assert len(found) == len(expected) == 12
    for cell in expected:
        scored = found[cell["num_frames"], round(cell["depth"] * 100), f"needle_{cell['needle']}"]
        assert scored["predicted_ids"] == cell["pred_ids"]
        assert scored["correct"] == bool(cell["correct"])
        assert scored["answer_logprobs"] == pytest.approx(cell["answer_logprobs"], abs=5e-4)
    assert results["results"]["vniah"]["vniah_acc,none"] == pytest.approx(
        sum(cell["correct"] for cell in expected) / len(expected)
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Passing `min_pixels`:FutureWarning")  # by lmms-eval's models
def test_a_model_of_lmms_evals_own_answers_on_composed_videos(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiny_hosts import write_tiny_qwen2_5_vl

    monkeypatch.setenv("VNIAH_FRAMES", "3,7")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(small / "datasets"))
    write_tiny_qwen2_5_vl(small / "qwen")
    results = evaluated("qwen2_5_vl", f"pretrained={small / 'qwen'},{QWEN_ARGS}", "vniah_generate")
    scored = cells_of(results, "vniah_generate")
    assert len(scored) == 12
    assert all(isinstance(one["predicted"], str) and one["predicted"] for one in scored)
    assert set(results["results"]["vniah_generate"]) >= {"vniah_acc,none", "vniah_control,none", "vniah_grid,none"}
