"""Video-MME and all of MLVU through the real lmms-eval command line, from a Hub on loopback, with faults.

One run for all: lmms-eval takes seconds to start. The built-in model `dummy` answers "B" to everything and
reads the first bytes of every video that it is shown, so a path that does not exist would fail.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub_server import LoopbackHub
from judge_server import JudgeServer, Step
from video_benchmarks import DURATIONS, choices, frees, serve_mlvu, serve_videomme
from video_files import cut, write_video

from vniah.answers import chosen_letter

pytest.importorskip("lmms_eval")


@pytest.fixture
def video(tmp_path: Path) -> bytes:
    return write_video(tmp_path / "made" / "video.mp4").read_bytes()


@pytest.fixture
def broken(tmp_path: Path) -> bytes:
    return cut(write_video(tmp_path / "made" / "broken.mp4"), 0.3).read_bytes()


def grade(body: dict[str, Any]) -> Step:
    """Sub-scenes get 4 + 5; the first summary 1 + 2, the second nonsense."""
    system = body["messages"][0]["content"]
    if "completeness" not in system:
        return 'Well said. {"accuracy": 4, "relevance": 5}'
    grade.summaries += 1  # type: ignore[attr-defined]
    return '{"completeness": 1, "reliability": 2}' if grade.summaries == 1 else "no idea"  # type: ignore[attr-defined]


def run(tmp_path: Path, env: dict[str, str], tasks: str, model: str, model_args: str) -> dict[str, Any]:
    """Run lmms-eval and return the content of its results file; its output is shown when there is none."""
    command = [sys.executable, "-m", "lmms_eval", "--model", model, "--model_args", model_args, "--tasks", tasks]
    command += ["--batch_size", "1", "--log_samples", "--output_path", str(tmp_path / "out")]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    files = list((tmp_path / "out").rglob("*results.json"))
    assert files, f"no results file\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    (tmp_path / "log").write_text(done.stdout + done.stderr)
    return dict(json.loads(files[0].read_text()))


def values(results: dict[str, Any], task: str) -> dict[str, Any]:
    """A task's metrics without lmms-eval's filter name and standard errors."""
    found = results["results"][task].items()
    return {key.partition(",")[0]: value for key, value in found if key.endswith(",none") and "stderr" not in key}


@pytest.mark.slow
def test_both_benchmarks_from_the_hub(loopback_hub: LoopbackHub, tmp_path: Path, video: bytes, broken: bytes) -> None:
    serve_videomme(loopback_hub, video, broken)
    serve_mlvu(loopback_hub, video, broken)
    grade.summaries = 0  # type: ignore[attr-defined]
    with JudgeServer(grade) as judge:
        env = loopback_hub.env(
            tmp_path / "home",
            VNIAH_CACHE=str(tmp_path / "cache"),
            VNIAH_JUDGE_URL=judge.url,
            VNIAH_JUDGE_MODEL="grader",
            OMP_NUM_THREADS="1",
        )
        for name in ("VIDEOMME_VIDEOS", "MLVU_VIDEOS"):
            env.pop(name, None)
        tasks = "videomme_longva,videomme_longva_subtitle,mlvu_longva"
        results = run(tmp_path, env, tasks, "dummy", "response=B,read_bytes=16")
    log = (tmp_path / "log").read_text()

    found = values(results, "videomme_longva")
    breakdown = found.pop("videomme_breakdown")
    assert found == {
        "videomme_overall": pytest.approx(600 / 9),
        "videomme_short": 100.0,
        "videomme_medium": pytest.approx(200 / 3),
        "videomme_long": pytest.approx(100 / 3),
        "videomme_knowledge": pytest.approx(400 / 6),
        "videomme_life_record": pytest.approx(200 / 3),
        "videomme_ocr_problems": pytest.approx(600 / 9),
        "videomme_missing_videos": 3,
        "videomme_missing_questions": 3,
    }
    assert breakdown["sub_category"]["Travel"]["questions"] == 9
    assert values(results, "videomme_longva_subtitle")["videomme_overall"] == pytest.approx(600 / 9)
    # The archive that escapes is refused whole, said so, and nothing of it is anywhere.
    assert "videos_chunked_02" in log or "v_evil" in log
    assert not [path for path in tmp_path.rglob("*v_evil.mp4*") if "blobs" not in path.parts]

    dev = values(results, "mlvu_longva_dev_choice")
    assert dev["mlvu_m_avg"] == pytest.approx((100 + 50 + 0 + 50 + 50 + 100) / 6)
    assert "mlvu_ac" not in dev and dev["mlvu_missing_videos"] == 1 and dev["mlvu_missing_questions"] == 2
    test = values(results, "mlvu_longva_test_choice")
    assert test["mlvu_m_avg"] == pytest.approx((100 + 50 + 0 + 100) / 4) and test["mlvu_sqa"] == 50.0

    parts = [values(results, f"mlvu_longva_{split}_generation") for split in ("dev", "test")]
    assert [part["mlvu_ssc"] for part in parts] == [9.0, 9.0]
    # One of the two summaries met a judge that talked nonsense.
    assert sorted(str(part["mlvu_vs"]) for part in parts) == ["3.0", "not scored"]
    assert sorted(str(part["mlvu_g_avg"]) for part in parts) == ["6.0", "not scored"]
    assert sum(part["mlvu_unscored"] for part in parts) == 1
    assert "not scored" in log
    # The table is for reading: breakdowns are in the results file alone.
    assert "mlvu_m_avg" in log and "breakdown" not in log

    samples = next((tmp_path / "out").rglob("*samples_videomme_longva_subtitle.jsonl")).read_text().splitlines()
    first = json.loads(samples[0])
    assert "hello there" in str(first) and first["videomme_overall"]["predicted"] == "B"
    assert not any("action_count" in path for _, path, _ in loopback_hub.requests if "resolve" in path)


@pytest.mark.slow
def test_both_benchmarks_with_longva_ring_from_local_folders(
    shared: Path, tmp_path: Path, video: bytes, broken: bytes
) -> None:
    """A tiny LongVA answers gibberish; the figures must still be those of its own answers."""
    videomme, mlvu = tmp_path / "videomme", tmp_path / "mlvu"
    rows = []
    for index, duration in enumerate(DURATIONS):
        write_video(videomme / f"{duration}.mp4", index)
        common = {"videoID": duration, "duration": duration, "domain": "Knowledge", "task_type": "OCR Problems"}
        options = ["A. One.", "B. Two.", "C. Three.", "D. Four."]
        rows += [{**common, "question": f"What? ({n})", "options": options, "answer": "ABC"[n]} for n in range(3)]
    (videomme / "bad.mp4").write_bytes(broken)
    rows.append({**rows[0], "videoID": "bad"})
    (videomme / "videomme.json").write_text(json.dumps(rows))
    for name, content in (("1_plotQA", choices({"plotQA": "AB"})), ("9_summary", frees()[1:])):
        (mlvu / "json").mkdir(parents=True, exist_ok=True)
        (mlvu / "json" / f"{name}.json").write_text(json.dumps(content))
    write_video(mlvu / "video" / "1_plotQA" / "plotQA_1.mp4")
    write_video(mlvu / "video" / "9_summary" / "1.mp4")

    env = {key: value for key, value in os.environ.items() if not key.startswith("VNIAH_")}
    env.update(VIDEOMME_VIDEOS=str(videomme), MLVU_VIDEOS=str(mlvu), HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    env.update(HF_HOME=str(tmp_path / "home"), VNIAH_CACHE=str(tmp_path / "cache"))
    model_args = f"pretrained={shared / 'parity' / 'LongVA-tiny-unires'},dtype=float32,device=cpu,max_frames_num=4"
    results = run(tmp_path, env, "videomme_longva,mlvu_longva_dev", "longva_ring", model_args)

    def samples(task: str, metric: str) -> list[dict[str, Any]]:
        lines = next((tmp_path / "out").rglob(f"*samples_{task}.jsonl")).read_text().splitlines()
        return [json.loads(line)[metric] for line in lines]

    asked = samples("videomme_longva", "videomme_overall")
    assert len(asked) == 9 and len({sample["response"] for sample in asked}) > 1
    right = sum(chosen_letter(sample["response"], 4) == sample["answer"] for sample in asked)
    found = values(results, "videomme_longva")
    assert found["videomme_overall"] == pytest.approx(100 * right / 9) and found["videomme_missing_videos"] == 1
    plot = samples("mlvu_longva_dev_choice", "mlvu_m_avg")
    right = sum(chosen_letter(sample["response"], 4) == sample["answer"] for sample in plot)
    assert values(results, "mlvu_longva_dev_choice")["mlvu_m_avg"] == pytest.approx(100 * right / 2)
    assert values(results, "mlvu_longva_dev_generation")["mlvu_g_avg"] == "not scored"
