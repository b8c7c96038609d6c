"""`longva_paper` as a whole: one lmms-eval command, then every table and figure of docs/paper.md from its output.

Every data set of the group is a stand-in on a Hub at loopback; the model is a tiny random LongVA. The group runs
twice, as a user would who finds a judge later: the second run takes its answers from the journal of the first.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hub_server import LoopbackHub
from hub_tables import card, parquet
from judge_server import JudgeServer, Step
from PIL import Image
from tiny_checkpoints import write_longva
from upstream_data import grade, picture, serve_images, serve_table_8, write_videos
from video_benchmarks import serve_mlvu, serve_videomme
from video_files import cut, write_video

from vniah.text.haystack import ESSAYS
from vniah.visual.settings import DEFAULT_NEEDLES

pytest.importorskip("lmms_eval")
pytestmark = pytest.mark.slow

NEEDLES = ("vniah", "text_niah_0", "text_niah_3", "text_niah_5")
JUDGED = {
    "activitynetqa": ("gpt_eval_score", "gpt_eval_accuracy"),
    "videochatgpt_gen": (
        "gpt_eval_score_correctness",
        "gpt_eval_score_detailed_orientation",
        "gpt_eval_score_context",
    ),
    "videochatgpt_temporal": ("gpt_eval_score_temporal",),
    "videochatgpt_consistency": ("gpt_eval_score_consistency",),
    "video_dc499": ("gpt_eval_score",),
    "mlvu_longva_dev_generation": ("mlvu_g_avg", "mlvu_vs", "mlvu_ssc"),
}
SCORED = {
    "videomme_longva": "videomme_overall",
    "nextqa_mc_test": "exact_match",
    "ai2d": "exact_match",
    "chartqa": "relaxed_overall",
    "docvqa_val": "anls",
    "infovqa_val": "anls",
    "realworldqa": "exact_match",
    "mmmu_val": "mmmu_acc",
    "mlvu_longva_dev_choice": "mlvu_m_avg",
}
TASKS = {*NEEDLES, *JUDGED, *SCORED, "nextqa_oe_test"}
GROUPS = {"longva_paper", "longva_paper_needles", "longva_paper_video", "longva_paper_image", "mlvu_longva_dev"}


@dataclass(frozen=True, slots=True)
class Whole:
    """The two runs: their output folders, what the first said, and the environment of the second."""

    unjudged: Path
    judged: Path
    log: str
    env: dict[str, str]


def serve_needles(hub: LoopbackHub) -> None:
    """One needle, and essays long enough for the grid below."""
    needle = [{"image": picture(3), "question": "\nFind the frame of a cat. What is it?", "answer": "A cat"}]
    hub.add_repo(DEFAULT_NEEDLES, {"README.md": card(), "data/test-00000-of-00001.parquet": parquet(needle)})
    essay = " ".join(f"In year {year} they built a house of {year % 7} rooms." for year in range(1900, 2000))
    hub.add_repo(ESSAYS, {"README.md": card(), "data/train-00000-of-00001.parquet": parquet([{"text": essay}])})


def judge(body: dict[str, Any]) -> Step:
    """lmms-eval's own tasks ask for one score, MLVU for two."""
    if body["model"] != "mlvu":
        return grade(body)
    names = ("completeness", "reliability") if "completeness" in str(body["messages"]) else ("accuracy", "relevance")
    return json.dumps(dict(zip(names, (4, 3), strict=True)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    """Small grids, so that two documents are all of each: one needle at one place, and its control."""
    root = tmp_path_factory.mktemp("whole")
    hub = LoopbackHub().start()
    serve_needles(hub)
    serve_images(hub)
    serve_table_8(hub, write_videos(root / "videos"))
    video = write_video(root / "video.mp4", num_frames=24)
    broken = cut(write_video(root / "broken.mp4"), 0.3)
    serve_videomme(hub, video.read_bytes(), broken.read_bytes())
    serve_mlvu(hub, video.read_bytes(), broken.read_bytes())
    model = write_longva(root / "model")
    env = hub.env(
        root / "home",
        VNIAH_CACHE=str(root / "cache"),
        VNIAH_HAYSTACK=str(video),
        VNIAH_FRAMES="4",
        VNIAH_DEPTHS="50",
        TEXT_NIAH_LENGTHS="1500",
        TEXT_NIAH_DEPTHS="50",
        TEXT_NIAH_SAMPLES="1",
        OMP_NUM_THREADS="1",
    )
    for name in ("OPENAI_API_KEY", "VNIAH_JUDGE_URL", "VIDEOMME_VIDEOS", "MLVU_VIDEOS", "TEXT_NIAH_HAYSTACK"):
        env.pop(name, None)
    # As most users have it: no HF_HOME, which several of lmms-eval's own tasks take for granted.
    for name in ("HF_HOME", "XDG_CACHE_HOME"):
        env.pop(name, None)
    env["HOME"] = str(root / "home")
    log = run(env, root, model, root / "unjudged")
    with JudgeServer(judge) as server:
        env |= {"VNIAH_JUDGE_URL": server.url, "VNIAH_JUDGE_MODEL": "mlvu"}
        env |= {"OPENAI_API_URL": f"{server.url}/chat/completions", "OPENAI_API_KEY": "none"}
        run(env, root, model, root / "judged")
    yield Whole(root / "unjudged", root / "judged", log, env)
    hub.stop()


def run(env: dict[str, str], folder: Path, model: Path, out: Path) -> str:
    """The command of docs/paper.md; gives what it printed, which is also the message where it left no results."""
    command = [sys.executable, "-m", "lmms_eval", "--model", "longva_ring", "--tasks", "longva_paper", "--limit", "2"]
    command += ["--model_args", f"pretrained={model},dtype=float32,device=cpu,max_frames_num=4"]
    command += ["--log_samples", "--output_path", str(out)]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=1800)
    said = done.stdout + done.stderr
    (folder / f"{out.name}.log").write_text(said)
    assert list(out.rglob("*_results.json")), f"no results file\n{said[-8000:]}"
    return said


def results(out: Path) -> dict[str, dict[str, Any]]:
    """Metrics by task, lmms-eval's filter name cut off."""
    (file,) = out.rglob("*_results.json")
    found = json.loads(file.read_text())["results"]
    return {task: {key.partition(",")[0]: value for key, value in one.items()} for task, one in found.items()}


def samples(out: Path, task: str) -> list[dict[str, Any]]:
    (file,) = out.rglob(f"*_samples_{task}.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def vniah(main: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
    """Run ``vniah ARGUMENTS`` and give what it printed."""

    def call(*arguments: object) -> str:
        code, out, err = main(*arguments)
        assert not code, err
        return out

    return call


def test_every_task_has_results_and_samples(whole: Whole) -> None:
    for out in (whole.unjudged, whole.judged):
        found = results(out)
        assert set(found) >= TASKS | GROUPS
        assert {task: len(samples(out, task)) for task in TASKS} == dict.fromkeys(TASKS, 2)
        for task, metric in SCORED.items():
            assert isinstance(found[task][metric], (int, float)), task
        # The group's own mean, over the three of text NIAH.
        assert found["text_niah"]["text_niah_acc"] == sum(found[one]["text_niah_acc"] for one in NEEDLES[1:]) / 3
    videomme = found["videomme_longva"]
    assert (videomme["videomme_missing_videos"], videomme["videomme_missing_questions"]) == (3, 3)


def test_judged_tasks_are_not_scored_without_a_judge_and_scored_with_one(whole: Whole) -> None:
    before, after = results(whole.unjudged), results(whole.judged)
    for module in ("activitynetqa", "videochatgpt", "video_detail_description"):
        assert whole.log.count(f"{module}: not scored (no judge: set OPENAI_API_KEY") == 1, "said, and once"
    for task, metrics in JUDGED.items():
        assert {before[task][metric] for metric in metrics} == {"not scored"}, task
    assert before["nextqa_oe_test"]["WUPS"] == after["nextqa_oe_test"]["WUPS"]  # "not scored" unless WordNet is there
    told = {metric: after[task][metric] for task, metrics in JUDGED.items() for metric in metrics}
    assert [told.pop(f"mlvu_{name}") for name in ("g_avg", "vs", "ssc")] == [7.0, 7.0, 7.0]
    assert told.pop("gpt_eval_accuracy") == 100.0
    assert after["activitynetqa"]["gpt_eval_score"] == 4.0 and after["video_dc499"]["gpt_eval_score"] == 3.0
    assert {value for metric, value in told.items() if metric != "gpt_eval_score"} == {3.0}
    # The answers are those of the first run, out of its journal.
    for task in TASKS:
        assert [row["filtered_resps"] for row in samples(whole.unjudged, task)] == [
            row["filtered_resps"] for row in samples(whole.judged, task)
        ], task


def test_tables_stand_beside_the_papers(whole: Whole, vniah: Callable[..., str]) -> None:
    published = ["LongVA-7B", *(f"Qwen2-7B-224K-distractors-{n}" for n in (0, 3, 5))]
    published += ["LongVA@32", "LongVA@256", "LongVA (UniRes)"]
    options = [part for name in published for part in ("--published", name)]
    text = vniah("compare", whole.judged, "--name", "ours", *options, "--format", "csv")
    tables = [list(csv.DictReader(block.splitlines())) for block in text.strip().split("\n\n")]
    rows = [{row[""]: row for row in table} for table in tables]
    grid, text_grids, table_6, table_8, table_9, table_10, means = rows
    assert set(means) == {"text_niah_acc"}
    found = results(whole.judged)
    assert grid["mean"]["LongVA (published)"] == "0.909" and "200 frames" in grid
    assert text_grids["mean"]["Qwen2-7B-224K, 3 distractors (published)"] == "0.935"
    assert {f"ours, {task}" for task in NEEDLES[1:]} <= set(text_grids["mean"])
    minus = "\N{MINUS SIGN}"
    for table, paper, row, ours in (
        (table_6, "LongVA@32", "Overall", found["videomme_longva"]["videomme_overall"]),
        (table_8, "LongVA@32", "ActivityNetQA Score", 4.0),
        (table_8, "LongVA@32", "VideoChatGPT Consistency", 3.0),
        (table_9, "LongVA (UniRes)", "MMMU", 100 * found["mmmu_val"]["mmmu_acc"]),
        (table_10, "LongVA@256", "M-Avg", found["mlvu_longva_dev_choice"]["mlvu_m_avg"]),
        (table_10, "LongVA@256", "VS", 7.0),
    ):
        cells = table[row]
        assert float(cells["ours"]) == pytest.approx(ours, abs=0.06)
        difference = float(cells["ours"]) - float(cells[f"{paper} (published)"])
        assert float(cells[f"ours {minus} {paper} (published)"]) == pytest.approx(difference, abs=0.11)
    assert len(table_8) == 9 and len(table_9) == 6 and len(table_10) == 11
    plain = vniah("compare", whole.unjudged, "--published", "LongVA@256", "--published", "LongVA@32")
    assert "--limit, the first 2 documents" in plain and "3 questions of videomme_longva left out" in plain
    assert [line.split()[1:4] for line in plain.splitlines() if line.startswith("G-Avg")] == [["not", "scored", "4.33"]]
    for form in ("markdown", "latex"):
        assert vniah("compare", whole.judged, *options, "--format", form).count("Table 10") == 1


def test_figures_are_drawn(whole: Whole, vniah: Callable[..., str], tmp_path: Path) -> None:
    data = tmp_path / "data.csv"

    def drawn(*arguments: object) -> list[dict[str, str]]:
        image = tmp_path / "figure.png"
        vniah("figure", *arguments, "-o", image, "--csv", data)
        with Image.open(image) as shown:
            assert min(shown.size) >= 200
        with data.open() as file:
            return list(csv.DictReader(file))

    cells = drawn("4", whole.judged, "--name", "ours", "--published", "LongVA-7B")
    mine = [(row["num_frames"], row["depth_percent"]) for row in cells if row["run"] == "ours"]
    assert mine == [("4", "50"), ("4", "control")] and len(cells) == 2 + 90
    cells = drawn("7", whole.judged, "--name", "ours")
    assert {row["run"] for row in cells} == {f"ours, {task}" for task in NEEDLES[1:]}
    points = drawn("frames", whole.judged, "--name", "ours")
    assert {row["frames"] for row in points if row["curve"] == "ours"} == {"4"}
    assert drawn("categories", whole.judged, "--task", "videomme_longva")[0]["category"] == "Overall"
    assert drawn("categories", whole.judged, "--task", "mlvu_longva_dev_choice")[0]["category"] == "M-Avg"


def test_figure_5_counts_the_images_of_the_groups_data_sets(whole: Whole, tmp_path: Path) -> None:
    repos = {"AI2D": "lmms-lab-encoder/ai2d", "InfoVQA": "lmms-lab-encoder/DocVQA:InfographicVQA@validation"}
    command = [sys.executable, "-m", "vniah.cli", "figure", "5", *repos.values(), "-o", str(tmp_path / "sizes.png")]
    command += [part for name in repos for part in ("--name", name)]
    done = subprocess.run(command, env=whole.env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("AI2D: 2 images\nInfoVQA: 2 images\n")


def test_one_report_holds_both_runs(whole: Whole, vniah: Callable[..., str], tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    said = vniah("report", whole.judged, whole.unjudged, "--published", "LongVA-7B", "-o", page)
    text = page.read_text()
    assert "3 questions of videomme_longva left out" in said and "3 questions of videomme_longva left out" in text
    assert text.count('<table role="grid"') == 2 * len(NEEDLES) + 1
    for task in TASKS - set(NEEDLES):
        assert f">{task}</h2>" in text
    assert ">longva_paper_video</h2>" not in text, "a group without figures is no task"
    assert "<th scope=row>mlvu_vs</th><td>7</td><td>not scored</td>" in text
