"""MLVU from a local folder: the nine tasks, M-Avg and G-Avg, and a judge that is there, off or broken."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from judge_server import JudgeServer, Step
from video_files import cut, write_video

from vniah.tasks.mlvu import data, score
from vniah.tasks.mlvu.data import CHOICE_CODES, GENERATION_CODES, NAMES, code_of

FOLDER = Path(data.__file__).parent
# The release's file, its folder of videos, its `question_type`, and the code of the paper's Table 10.
RELEASE = [
    ("1_plotQA", "plotQA", "PQA"),
    ("2_needle", "findNeedle", "NQA"),
    ("3_ego", "ego", "ER"),
    ("4_count", "count", "AC"),
    ("5_order", "order", "AO"),
    ("6_anomaly_reco", "anomaly_reco", "AR"),
    ("7_topic_reasoning", "topic_reasoning", "TR"),
    ("8_sub_scene", "subPlot", "SSC"),
    ("9_summary", "summary", "VS"),
]


def choice(video: str, kind: str, answer: str = "blue", **columns: Any) -> dict[str, Any]:
    return {
        "video": video,
        "duration": 4.0,
        "question": f"Which colour has {video}?",
        "candidates": ["red", "blue", "green", "grey"],
        "answer": answer,
        "question_type": kind,
        **columns,
    }


def free(video: str, kind: str, **columns: Any) -> dict[str, Any]:
    row = {"video": video, "duration": 4.0, "question": f"Describe {video}.", "question_type": kind}
    points = {"scoring_points": ["it rains", "a dog runs"]} if kind == "subPlot" else {}
    return {**row, "answer": "It rains and a dog runs.", **points, **columns}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """MLVU's release in small: each task two questions on "1.mp4", a name that all tasks share; faults in two tasks."""
    for seed, (name, kind, code) in enumerate(RELEASE):
        make = free if code in GENERATION_CODES else choice
        rows = [make("1.mp4", kind), make("1.mp4", kind)]
        if code == "PQA":
            rows += [choice("gone.mp4", kind), choice("1.mp4", kind, answer="purple")]
        if code == "VS":
            rows += [free("broken.mp4", kind)]
        (tmp_path / "json").mkdir(exist_ok=True)
        (tmp_path / "json" / f"{name}.json").write_text(json.dumps(rows))
        write_video(tmp_path / "video" / name / "1.mp4", seed)
    cut(write_video(tmp_path / "video" / "9_summary" / "broken.mp4"), 0.3)
    monkeypatch.setenv("MLVU_VIDEOS", str(tmp_path))
    return tmp_path


@pytest.fixture(autouse=True)
def _no_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("URL", "MODEL", "KEY", "TIMEOUT", "RETRIES"):
        monkeypatch.delenv(f"VNIAH_JUDGE_{name}", raising=False)


def rows(split: str = "dev", *, generation: bool) -> list[dict[str, Any]]:
    return [dict(row) for row in data.load(split, generation, data.SOURCES[split, generation].key())]


def test_seven_tasks_are_choices_and_two_are_free(folder: Path) -> None:
    asked = rows(generation=False)
    assert {row["task"] for row in asked} == {"TR", "AR", "NQA", "ER", "PQA", "AO", "AC"}
    assert len(asked) == 14
    assert {row["task"] for row in rows(generation=True)} == {"SSC", "VS"}
    for row in asked:
        # Every task has a "1.mp4"; each question must show its own task's.
        assert Path(row["video"]).parent.name.split("_")[1].casefold()[:4] in NAMES[row["task"]][0]


def test_what_cannot_be_scored_is_left_out_and_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    counts = {key: rows(generation=False)[0][key] for key in ("missing_videos", "missing_questions")}
    assert counts == {"missing_videos": 1, "missing_questions": 1}
    assert rows(generation=False)[0]["unusable_questions"] == 1
    assert "PQA/gone.mp4 (not found)" in caplog.text and "1 questions left out" in caplog.text
    assert {(row["missing_videos"], row["unusable_questions"]) for row in rows(generation=True)} == {(1, 0)}


def test_options_that_occur_in_the_question_are_still_listed() -> None:
    question = "How many goals were scored in the 2014 final?"
    listed = f"{question}\n(A) 0\n(B) 1\n(C) 2\n(D) 4"
    assert data.with_options(question, ["0", "1", "2", "4"]) == listed
    assert data.with_options(listed, ["0", "1", "2", "4"]) == listed


def test_questions_come_with_their_options_and_mlvus_cue(folder: Path) -> None:
    row = rows(generation=False)[0]
    assert score.doc_to_text_choice(row) == (
        "Which colour has 1.mp4?\n(A) red\n(B) blue\n(C) green\n(D) grey\nOnly give the best option.\nBest option: ("
    )
    assert row["answer"] == "B" and score.doc_to_visual(row) == [row["video"]]
    there_already = {**row, "question": "Which?\n(A) red\n(B) blue\n(C) green\n(D) grey"}
    assert score.doc_to_text_choice(there_already).count("(A) red") == 1
    assert score.doc_to_text_generation(rows(generation=True)[0]) == "Describe 1.mp4."


@pytest.mark.parametrize(("file", "kind", "code"), RELEASE)
def test_tasks_are_known_by_file_folder_and_type(file: str, kind: str, code: str) -> None:
    for name in (file, kind, code, code.lower()):
        assert code_of(name) == code


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(ValueError, match="question 0 of MLVU is of the task 'juggling'"):
        data.read_questions([choice("1.mp4", "juggling")], generation=False)


def aggregated(file: str, scored: list[dict[str, Any]]) -> dict[str, Any]:
    """What lmms-eval makes of the metric dicts, by the aggregations that the YAML names."""

    class Loader(yaml.SafeLoader):
        pass

    def function(loader: Any, node: Any) -> Any:
        return getattr(score, loader.construct_scalar(node).rpartition(".")[2], None)

    Loader.add_constructor("!function", function)
    config = yaml.load((FOLDER / file).read_text(), Loader)
    table = {metric["metric"]: metric["aggregation"] for metric in config["metric_list"]}
    names = {name for metrics in scored for name in metrics}
    assert names <= set(table), f"metrics that the YAML does not list: {names - set(table)}"
    return {name: table[name]([m[name] for m in scored if name in m]) for name in names}


def test_m_avg_is_the_mean_of_task_means(folder: Path) -> None:
    # One right of two everywhere, both in TR, and PQA has a third question that is right.
    asked = rows(generation=False)
    asked.append(next(row for row in asked if row["task"] == "PQA"))
    right = {"TR": ["B", "(B) blue"], "PQA": ["B", "A", "B"]}
    seen: dict[str, int] = {}
    scored = []
    for row in asked:
        turn = seen[row["task"]] = seen.get(row["task"], -1) + 1
        scored.append(score.process_choice(row, [right.get(row["task"], ["B", "C"])[turn]]))
    found = aggregated("_choice.yml", scored)
    breakdown = found.pop("mlvu_breakdown")
    assert found == {
        "mlvu_m_avg": pytest.approx((100 + 200 / 3 + 5 * 50) / 7),
        "mlvu_tr": 100.0,
        "mlvu_pqa": pytest.approx(200 / 3),
        **dict.fromkeys(("mlvu_ar", "mlvu_nqa", "mlvu_er", "mlvu_ao", "mlvu_ac"), 50.0),
        "mlvu_missing_videos": 1,
        "mlvu_missing_questions": 1,
        "mlvu_unusable_questions": 1,
    }
    assert breakdown["PQA"] == {"accuracy": pytest.approx(200 / 3), "questions": 3}


# Rows of the paper's Table 10: TR, AR, NQA, ER, PQA, AO, AC -> M-Avg; VS, SSC -> G-Avg.
TABLE_10 = [
    ((83.3, 58.5, 69.3, 50.0, 67.2, 38.6, 27.2), 56.3, (3.39, 5.26), 4.33),
    ((87.4, 74.5, 64.8, 57.1, 65.1, 56.7, 46.3), 64.6, (4.90, 6.69), 5.80),
    ((60.6, 41.0, 43.1, 38.4, 41.0, 25.5, 25.7), 39.3, (2.11, 4.35), 3.23),
]


@pytest.mark.parametrize(("choices", "m_avg", "free_tasks", "g_avg"), TABLE_10)
def test_the_averages_are_those_of_table_10(
    choices: tuple[float, ...], m_avg: float, free_tasks: tuple[float, ...], g_avg: float
) -> None:
    items = [{"task": str(index), "points": value} for index, value in enumerate(choices)]
    assert score.mean_of_task_means(items) == pytest.approx(m_avg, abs=0.05)
    items = [{"task": str(index), "points": value} for index, value in enumerate(free_tasks)]
    assert score.mean_of_task_means(items) == pytest.approx(g_avg, abs=0.0051)


def test_without_a_judge_generation_is_not_scored_and_never_zero(folder: Path) -> None:
    scored = [score.process_generation(row, ["It rains."]) for row in rows(generation=True)]
    found = aggregated("_generation.yml", scored)
    assert found["mlvu_g_avg"] == found["mlvu_ssc"] == found["mlvu_vs"] == "not scored"
    assert found["mlvu_unscored"] == 4
    assert found["mlvu_breakdown"]["SSC"]["judge"] == "off"
    assert "VNIAH_JUDGE_URL" in next(iter(found["mlvu_breakdown"]["SSC"]["reasons"]))
    assert all("score" not in value for item in scored for value in item.values() if isinstance(value, dict))


def point_at(server: JudgeServer, monkeypatch: pytest.MonkeyPatch, **more: str) -> None:
    settings = {"URL": server.url, "MODEL": "grader", "RETRIES": "0", "TIMEOUT": "5", **more}
    for name, value in settings.items():
        monkeypatch.setenv(f"VNIAH_JUDGE_{name}", value)


def test_a_judge_scores_both_tasks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def grade(body: dict[str, Any]) -> Step:
        system, user = (message["content"] for message in body["messages"])
        if "- it rains\n- a dog runs" in user:
            assert "accuracy" in system
            return (
                '{"accuracy": 4, "relevance": 5}'
                if "dog" in user.rpartition("grade:")[2]
                else '{"accuracy": 1, "relevance": 2}'
            )
        assert "completeness" in system and "It rains and a dog runs." in user
        return "{'completeness': 2, 'reliability': 3.5}"

    with JudgeServer(grade) as server:
        point_at(server, monkeypatch)
        asked = rows(generation=True)
        answers = {"SSC": ["A dog runs.", "Nothing."], "VS": ["It rains.", "It rains."]}
        scored = [score.process_generation(row, [answers[row["task"]].pop(0)]) for row in asked]
    found = aggregated("_generation.yml", scored)
    assert found["mlvu_ssc"] == (9 + 3) / 2 and found["mlvu_vs"] == 5.5
    assert found["mlvu_g_avg"] == (6 + 5.5) / 2
    assert found["mlvu_unscored"] == 0
    ssc = found["mlvu_breakdown"]["SSC"]
    assert (ssc["accuracy"], ssc["relevance"], ssc["judge"]) == (2.5, 3.5, "grader")
    assert scored[0]["mlvu_g_avg"]["judge_reply"]


def test_nonsense_is_counted_and_the_rest_averaged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replies: list[Step] = ["a fine answer", '{"accuracy": 3, "relevance": 3}', '{"completeness": 9}', "none"]
    with JudgeServer(lambda body: replies.pop(0)) as server:
        point_at(server, monkeypatch)
        asked = sorted(rows(generation=True), key=lambda row: str(row["task"]))
        found = aggregated("_generation.yml", [score.process_generation(row, ["text"]) for row in asked])
    assert found["mlvu_ssc"] == 6.0
    # No summary has a score, so neither has the average: a mean of one task alone would mislead.
    assert found["mlvu_vs"] == found["mlvu_g_avg"] == "not scored"
    assert found["mlvu_unscored"] == 3
    assert found["mlvu_breakdown"]["SSC"]["scored"] == found["mlvu_breakdown"]["SSC"]["unscored"] == 1


def test_a_judge_that_times_out_leaves_answers_unscored(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with JudgeServer(lambda body: 1.0) as server:
        point_at(server, monkeypatch, TIMEOUT="0.1")
        found = aggregated(
            "_generation.yml", [score.process_generation(row, ["text"]) for row in rows(generation=True)]
        )
    assert found["mlvu_g_avg"] == "not scored" and found["mlvu_unscored"] == 4
    assert found["mlvu_breakdown"]["VS"]["reasons"] == {"the judge did not answer within 0.1 s": 2}


def test_the_judge_is_asked_by_points_or_by_the_reference() -> None:
    doc = {**free("1.mp4", "subPlot"), "task": "SSC", "question_id": "7"}
    assert "- it rains\n- a dog runs" in score.request(doc, "x")[1]
    assert "- It rains and a dog runs." in score.request({**doc, "scoring_points": []}, "x")[1]
    for task in ("SSC", "VS"):
        system, _ = score.request({**doc, "task": task}, "x")
        example = re.findall(r"\{.*\}", system)[-1]
        assert tuple(json.loads(example)) == score.CRITERIA[task].names
    with pytest.raises(ValueError, match="question 7 has neither"):
        score.request({**doc, "scoring_points": [], "answer": ""}, "x")


def test_the_test_set_is_read_from_its_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = tmp_path / "test-ground-truth"
    truth.mkdir()
    six = ["red", "blue", "green", "grey", "pink", "gold"]
    sports = choice("a.mp4", "sportsQA", "gold", candidates=six, question_id="SQA_1")
    (truth / "test_mcq_gt.json").write_text(json.dumps([sports, choice("a.mp4", "tutorialQA", "D")]))
    (truth / "test_ssc_gt.json").write_text(json.dumps([free("a.mp4", "subPlot")]))
    summary = free("a.mp4", "summary")
    del summary["question_type"]
    (truth / "test_vs_gt.json").write_text(json.dumps([summary]))
    write_video(tmp_path / "test_video" / "a.mp4")
    monkeypatch.setenv("MLVU_VIDEOS", str(tmp_path))
    choices = rows("test", generation=False)
    assert [(row["task"], row["answer"], row["question_id"]) for row in choices] == [
        ("SQA", "F", "SQA_1"),
        ("TQA", "D", "TQA_1"),
    ]
    assert score.process_choice(choices[0], ["F"])["mlvu_sqa"]["score"] == 100.0
    assert [row["task"] for row in rows("test", generation=True)] == ["SSC", "VS"]


def test_every_choice_task_has_its_metric() -> None:
    text = (FOLDER / "_choice.yml").read_text()
    assert {code for code in CHOICE_CODES if f"metric: mlvu_{code.lower()}\n" in text} == set(CHOICE_CODES)


def test_without_a_single_video_nothing_is_scored(folder: Path) -> None:
    for path in (folder / "video").rglob("*.mp4"):
        path.unlink()
    with pytest.raises(ValueError, match="MLVU dev, multiple choice: none of its 8 videos"):
        rows(generation=False)
