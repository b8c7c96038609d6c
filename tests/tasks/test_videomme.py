"""Video-MME from a local folder: which questions are asked, how, and what their answers score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from video_files import cut, write_video

from vniah import notices
from vniah.tasks.called import called_models
from vniah.tasks.videomme import data, score
from vniah.tasks.videomme.data import parse_srt, shown_at_frames

FOLDER = Path(data.__file__).parent

SRT = """1
00:00:00,000 --> 00:00:01,500
<font color="white" size=".72c">Hello &amp; welcome</font>

2
00:00:01,500 --> 00:00:02,400
to the
zoo

3
00:00:02,400 --> 00:00:04,000
- {\\an8}Goodbye
"""


def question(video: str, number: int, duration: str = "short", **columns: Any) -> dict[str, Any]:
    return {
        "video_id": "001",
        "videoID": video,
        "url": "",
        "duration": duration,
        "domain": "Knowledge",
        "sub_category": "Astronomy",
        "question_id": f"{video}-{number}",
        "task_type": "Counting Problem",
        "question": f"How many? ({number})",
        "options": ["A. One.", "B. Two.", "C. Three.", "D. Four."],
        "answer": "B",
        **columns,
    }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three good videos, one broken, one not there; two to three questions on each, not in order."""
    for seed, name in enumerate(("vA", "vB", "vC", "vBroken")):
        write_video(tmp_path / "data" / f"{name}.mp4", seed)
    cut(tmp_path / "data" / "vBroken.mp4", 0.3)
    (tmp_path / "subtitle").mkdir()
    (tmp_path / "subtitle" / "vA.srt").write_text(SRT)
    rows = [
        question("vA", 1),
        question("vB", 1, "medium", domain="Film & Television", task_type="OCR Problems"),
        question("vBroken", 1, "long"),
        question("vA", 2),
        question("vGone", 1, "long"),
        question("vGone", 2, "long"),
        question("vC", 1, "long", domain="A new domain", sub_category="Law", answer="D"),
    ]
    (tmp_path / "videomme.json").write_text(json.dumps(rows))
    monkeypatch.setenv("VIDEOMME_VIDEOS", str(tmp_path))
    return tmp_path


def rows() -> list[dict[str, Any]]:
    return [dict(row) for row in data.load(data.SOURCE.key())]


def test_questions_are_grouped_by_video_and_the_rest_is_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = rows()
    assert [row["question_id"] for row in asked] == ["vA-1", "vA-2", "vB-1", "vC-1"]
    assert {(row["missing_videos"], row["missing_questions"]) for row in asked} == {(2, 3)}
    assert asked[0]["video"] == str(folder / "data" / "vA.mp4") == asked[1]["video"]
    assert asked[0]["subtitles"] == str(folder / "subtitle" / "vA.srt") and asked[2]["subtitles"] == ""
    assert "2 of 5 videos missing or broken" in caplog.text
    assert "vGone (not found)" in caplog.text and "vBroken (it " in caplog.text


def test_the_prompt_is_video_mmes_own(folder: Path) -> None:
    row = rows()[0]
    assert score.doc_to_text(row) == (
        "Select the best answer to the following multiple-choice question based on the video. "
        "Respond with only the letter (A, B, C, or D) of the correct option.\n"
        "How many? (1)\nA. One.\nB. Two.\nC. Three.\nD. Four.\nThe best answer is:"
    )
    assert score.doc_to_text(row, {"pre_prompt": "Look.", "post_prompt": "Answer:"}).startswith("Look.\nHow many?")
    assert score.doc_to_visual(row) == [str(folder / "data" / "vA.mp4")]


def test_subtitles_of_the_sampled_frames_come_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_subtitles, without = rows()[0], rows()[2]
    plain = score.doc_to_text(with_subtitles)
    monkeypatch.setenv("VIDEOMME_SUBTITLE_FRAMES", "2")
    # Sixteen frames at 4 a second: the first and the last are at 0 s and 3.75 s.
    assert score.doc_to_text_subtitle(with_subtitles) == (
        f"This video's subtitles are listed below:\nHello & welcome\n- Goodbye\n{plain}"
    )
    monkeypatch.setenv("VIDEOMME_SUBTITLE_FRAMES", "all")
    assert score.doc_to_text_subtitle(with_subtitles) == (
        f"This video's subtitles are listed below:\nHello & welcome\nto the zoo\n- Goodbye\n{plain}"
    )
    assert score.doc_to_text_subtitle(without) == score.doc_to_text(without)


@pytest.mark.parametrize(
    ("environ", "model_args", "frames", "said"),
    [
        ("", "pretrained=nano,max_frames_num=384", 384, ""),
        ("", "max_num_frames=16", 16, ""),
        ("", "pretrained=nano", 128, "128 frames of a video"),
        ("128", "max_frames_num=64", 128, "the model samples 64 (max_frames_num=64)"),
        ("64", "max_frames_num=64", 64, ""),
        ("all", "max_frames_num=64", None, ""),
        ("", "max_frames_num=0", 128, "128 frames of a video"),
    ],
)
def test_subtitles_are_those_of_the_frames_that_the_model_samples(
    environ: str,
    model_args: str,
    frames: int | None,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    notices.forget()
    monkeypatch.setenv("VIDEOMME_SUBTITLE_FRAMES", environ)
    argv = ["--model", "longva_ring", "--model_args", model_args, "--tasks", "videomme_longva_subtitle"]
    assert score.subtitle_frames(called_models(argv)) == frames
    assert said in capsys.readouterr().err and (said or not notices.recorded())


def test_models_of_a_config_file_that_sample_alike_say_the_frames(tmp_path: Path) -> None:
    path = tmp_path / "runs.yaml"
    for second, frames in ((64, 64), (32, 128)):
        runs = [{"model": "longva_ring", "model_args": f"max_frames_num={count}"} for count in (64, second)]
        path.write_text(yaml.safe_dump(runs))
        assert score.subtitle_frames(called_models(["--config", str(path)])) == frames


@pytest.mark.parametrize("value", ["0", "-3", "many", "1.5"])
def test_a_wrong_number_of_subtitle_frames_is_named(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOMME_SUBTITLE_FRAMES", value)
    with pytest.raises(ValueError, match=f"VIDEOMME_SUBTITLE_FRAMES .*{value}"):
        score.subtitle_frames([])


def aggregated(scored: list[dict[str, Any]]) -> dict[str, Any]:
    """What lmms-eval makes of the metric dicts: each metric's aggregation over the rows that have it."""
    names = {name for metrics in scored for name in metrics}
    table: dict[str, Any] = {"videomme_breakdown": score.breakdown}
    table |= dict.fromkeys(("videomme_missing_videos", "videomme_missing_questions"), score.count)
    return {name: table.get(name, score.accuracy)([m[name] for m in scored if name in m]) for name in names}


def test_metrics_are_those_computed_by_hand(folder: Path) -> None:
    # Right, wrong, wrong (no letter), right.
    answers = ["B", "C. Three.", "no idea", "The best answer is: D"]
    found = aggregated([score.process_results(row, [text]) for row, text in zip(rows(), answers, strict=True)])
    breakdown = found.pop("videomme_breakdown")
    assert found == {
        "videomme_overall": 50.0,
        "videomme_short": 50.0,
        "videomme_medium": 0.0,
        "videomme_long": 100.0,
        "videomme_knowledge": 50.0,
        "videomme_film_television": 0.0,
        "videomme_counting_problem": pytest.approx(200 / 3),
        "videomme_ocr_problems": 0.0,
        "videomme_missing_videos": 2,
        "videomme_missing_questions": 3,
    }
    assert breakdown["domain"]["A new domain"] == {"accuracy": 100.0, "questions": 1}
    assert breakdown["sub_category"]["Astronomy"] == {"accuracy": pytest.approx(100 / 3), "questions": 3}
    assert json.loads(json.dumps(breakdown)) == breakdown


def test_the_sample_tells_what_was_asked_and_answered(folder: Path) -> None:
    full = score.process_results(rows()[0], ["B."])["videomme_overall"]
    assert full["score"] == 100.0 and full["answer"] == full["predicted"] == "B" and full["response"] == "B."
    assert full["duration"] == "short" and full["with_subtitles"] is True


def test_the_yaml_lists_exactly_the_metrics_that_are_computed() -> None:
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    config = yaml.load((FOLDER / "_videomme.yml").read_text(), Loader)
    listed = [metric["metric"] for metric in config["metric_list"]]
    expected = {"videomme_overall", "videomme_breakdown", "videomme_missing_videos", "videomme_missing_questions"}
    assert sorted(listed) == sorted(expected | score.BREAKDOWNS)


def test_annotations_are_told_from_other_files_and_read_in_all_their_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import pyarrow
    import pyarrow.parquet

    for number, name in enumerate("ab"):
        write_video(tmp_path / f"{name}.mp4")
        table = pyarrow.Table.from_pylist([question(name, 1)])
        (tmp_path / "videomme").mkdir(exist_ok=True)
        pyarrow.parquet.write_table(table, tmp_path / "videomme" / f"test-0000{number}-of-00002.parquet")
    monkeypatch.setenv("VIDEOMME_VIDEOS", str(tmp_path))
    assert [row["question_id"] for row in rows()] == ["a-1", "b-1"]

    other = tmp_path / "other"
    write_video(other / "c.mp4")
    (other / "about.json").write_text('{"name": "no questions"}')
    (other / "scores.json").write_text('[{"model": "x", "score": 1}]')
    (other / "zz.json").write_text(json.dumps([question("c", 1)]))
    monkeypatch.setenv("VIDEOMME_VIDEOS", str(other))
    assert [row["question_id"] for row in rows()] == ["c-1"]
    assert "about.json" in caplog.text


def test_options_without_letters_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "v.mp4")
    (tmp_path / "test.jsonl").write_text(json.dumps(question("v", 1, options=["red", "blue"], answer="blue")) + "\n")
    monkeypatch.setenv("VIDEOMME_VIDEOS", str(tmp_path))
    assert rows()[0]["options"] == ["A. red", "B. blue"] and rows()[0]["answer"] == "B"


@pytest.mark.parametrize(
    ("change", "said"),
    [({"question": ""}, "lacks question"), ({"answer": "Z"}, "'Z' is none of its options")],
)
def test_a_question_that_cannot_be_scored_is_named(
    change: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "v.mp4")
    (tmp_path / "test.json").write_text(json.dumps([question("v", 1), question("v", 2, **change)]))
    monkeypatch.setenv("VIDEOMME_VIDEOS", str(tmp_path))
    with pytest.raises(ValueError, match=f"question 1 of Video-MME.*{said}"):
        rows()


def test_without_a_single_video_nothing_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test.json").write_text(json.dumps([question("v", 1)]))
    monkeypatch.setenv("VIDEOMME_VIDEOS", str(tmp_path))
    with pytest.raises(ValueError, match="Video-MME: none of its 1 videos"):
        rows()


def test_subtitles_are_parsed_without_markup() -> None:
    subtitles = parse_srt(SRT.replace("\n", "\r\n") + "\r\n\r\n4\r\nno time here\r\n")
    assert [(one.start_s, one.stop_s, one.text) for one in subtitles] == [
        (0.0, 1.5, "Hello & welcome"),
        (1.5, 2.4, "to the zoo"),
        (2.4, 4.0, "- Goodbye"),
    ]


@pytest.mark.parametrize(
    ("num_frames", "shown"),
    [
        (1, ["Hello & welcome"]),
        (3, ["Hello & welcome", "to the zoo"]),  # 0 s, 2 s and 4 s
        (5, ["Hello & welcome", "to the zoo", "- Goodbye"]),
        (384, ["Hello & welcome", "to the zoo", "- Goodbye"]),
    ],
)
def test_subtitles_shown_at_frames(num_frames: int, shown: list[str]) -> None:
    assert shown_at_frames(parse_srt(SRT), 4.0, num_frames) == shown


def test_a_benchmark_that_cannot_be_had_says_so_when_the_task_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmms_eval.tasks import TaskManager

    folder = Path(__file__).resolve().parents[2] / "tasks"
    monkeypatch.setenv("VIDEOMME_VIDEOS", str(tmp_path))
    monkeypatch.setenv("MLVU_VIDEOS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    manager = TaskManager("ERROR", include_path=str(folder), include_defaults=False)
    for task in ("videomme_longva", "mlvu_longva_dev_choice"):
        with pytest.raises(ValueError, match=r"(?i)video-?mme|mlvu"):
            manager.load_task_or_group([task])
