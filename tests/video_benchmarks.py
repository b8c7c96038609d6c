"""Small stand-ins for Video-MME and all of MLVU on the loopback Hub, with a broken, a missing and an escaping video."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hub_server import LoopbackHub
from hub_tables import parquet, zipped

DURATIONS = ("short", "medium", "long")


def serve_videomme(hub: LoopbackHub, video: bytes, broken: bytes) -> None:
    """Three good videos with three questions each; one broken, one missing, one in an archive that escapes."""
    answers = {"short": "BBB", "medium": "BBA", "long": "BAA"}
    rows = [
        {
            "video_id": f"00{index}",
            "duration": duration,
            "domain": ("Knowledge", "Life Record")[index % 2],
            "sub_category": "Travel",
            "url": "",
            "videoID": f"v_{duration}",
            "question_id": f"00{index}-{number}",
            "task_type": "OCR Problems",
            "question": f"What is it? ({number})",
            "options": ["A. One.", "B. Two.", "C. Three.", "D. Four."],
            "answer": answer,
        }
        for index, duration in enumerate(DURATIONS)
        for number, answer in enumerate(answers[duration])
    ]
    rows += [{**rows[0], "videoID": name, "answer": "A"} for name in ("v_broken", "v_gone", "v_evil")]
    files = {f"data/v_{duration}.mp4": video for duration in DURATIONS}
    hub.add_repo(
        "lmms-eval/Video-MME",
        {
            "README.md": "---\n---\n",
            "videomme/test-00000-of-00001.parquet": parquet(rows),
            "videos_chunked_01.zip": zipped({**files, "data/v_broken.mp4": broken}),
            "videos_chunked_02.zip": zipped({"data/v_evil.mp4": video, "../../../v_evil.mp4": video}),
            "subtitle.zip": zipped({"subtitle/v_short.srt": b"1\n00:00:00,000 --> 00:00:04,000\nhello there\n"}),
        },
    )


def choices(kinds: Mapping[str, str]) -> list[dict[str, Any]]:
    """Two questions a task; ``kinds`` gives the two right answers, as letters."""
    return [
        {
            "video_name": f"{kind}_1.mp4",
            "duration": 4.0,
            "question": "Which?\n(A) red\n(B) blue\n(C) green\n(D) grey",
            "candidates": ["red", "blue", "green", "grey"],
            "answer": letter,
            "task_type": kind,
            "question_id": f"{kind}_{number}",
        }
        for kind, letters in kinds.items()
        for number, letter in enumerate(letters)
    ]


def frees(**columns: Any) -> list[dict[str, Any]]:
    sub_scene = {"video": "sub_1.mp4", "question": "Describe.", "answer": "It rains.", "question_type": "subPlot"}
    summary = {"video": "1.mp4", "question": "Summarise.", "answer": "A day at sea.", "question_type": "summary"}
    return [{**sub_scene, "scoring_points": ["it rains"], **columns}, {**summary, "scoring_points": [], **columns}]


def serve_mlvu(hub: LoopbackHub, video: bytes, broken: bytes) -> None:
    dev = {
        "plotQA": "BB",
        "findNeedle": "BA",
        "ego": "AA",
        "count": "BB",
        "order": "BA",
        "anomaly_reco": "AB",
        "topic_reasoning": "BB",
    }
    test = {"anomaly_reco": "BB", "sportsQA": "BA", "tutorialQA": "AA", "needleQA": "BB"}
    for name, folder, kinds in (("MLVU_dev", "mlvu", dev), ("MLVU_Test", "mlvu_test", test)):
        files = {f"{kind}_1.mp4": broken if kind == "count" else video for kind in kinds}
        hub.add_repo(
            f"sy1998/{name}",
            {
                "README.md": "---\n---\n",
                f"{folder}/test-00000-of-00001.parquet": parquet(choices(kinds)),
                "video_part_1.zip": zipped(files),
            },
        )
    hub.add_repo(
        "sy1998/MLVU",
        {
            "data/OE-00000-of-00001.parquet": parquet(frees()),
            "MLVU/video/subPlot/sub_1.mp4": video,
            "MLVU/video/summary/1.mp4": video,
            "action_count.zip": b"thirty gigabytes that nobody asked for",
        },
    )
    hub.add_repo(
        "MLVU/MLVU_Test",
        {
            "test-ground-truth/test_ssc_gt.json": json.dumps(frees()[:1]),
            "test-ground-truth/test_vs_gt.json": json.dumps(frees()[1:]),
            "MLVU_Test/test_video/sub_1.mp4": video,
            "MLVU_Test/test_video/1.mp4": video,
        },
    )
