"""Small stand-ins for the datasets of lmms-eval's own tasks, in the layout that each task reads, two documents each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hub_server import LoopbackHub
from hub_tables import card, parquet, zipped
from PIL import Image
from video_files import write_video

# By task: the pictures that document 0 and document 1 show, by seed of ``picture``; or the videos, by number.
PICTURES = {
    "mme": ((0,), (0,)),
    "ai2d": ((10,), (11,)),
    "chartqa": ((20,), (21,)),
    "docvqa_val": ((30,), (31,)),
    "infovqa_val": ((40,), (41,)),
    "realworldqa": ((50,), (51,)),
    "mmmu_val": ((61, 62), (71,)),
}
VIDEOS = {
    "videomme": (0, 1),
    "mlvu_dev": (0, 1),
    "nextqa_mc_test": (1, 0),
    "activitynetqa": (0, 1),
    "video_dc499": (1, 0),
}


def picture(seed: int) -> Image.Image:
    size = (30 + 7 * (seed % 5), 24 + 11 * (seed % 3), 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8))


def write_videos(folder: Path) -> list[Path]:
    return [write_video(folder / f"{number}.mp4", number, num_frames=9) for number in range(2)]


def grade(body: dict[str, Any]) -> bytes:
    """A judge that gives activitynetqa yes and 4, video_dc499 3."""
    said = "{'pred': 'yes', 'score': 4}" if "yes/no" in str(body) else "{'score': 3}"
    reply = {"model": "grader", "choices": [{"message": {"role": "assistant", "content": said}}]}
    return json.dumps(reply).encode()


def serve_images(hub: LoopbackHub) -> None:
    seen = {task: [[picture(seed) for seed in seeds] for seeds in shown] for task, shown in PICTURES.items()}

    def rows(task: str, **columns: Any) -> list[dict[str, Any]]:
        return [{"image": images[0], **columns} for images in seen[task]]

    mme = rows("mme", question_id="existence/1.png", category="existence")
    mme[0] |= {"question": "Is there a cat? Please answer yes or no.", "answer": "Yes"}
    mme[1] |= {"question": "Is there a dog? Please answer yes or no.", "answer": "No"}
    ai2d = rows("ai2d", question="Which part?", options=["root", "leaf", "stem", "seed"], answer="1")
    chartqa = rows("chartqa", question="How many bars?", answer="4", type="human_test")
    chartqa[1]["type"] = "augmented_test"
    document = {"questionId": "7", "question": "What is the date?", "answers": ["may"], "docId": 1}
    real = rows("realworldqa", question="Which way?\nA. left\nB. right", answer="A")
    mmmu = [
        {
            "id": f"validation_Art_{number}",
            "question": question,
            "options": "['one', 'two']",
            "question_type": "multiple-choice",
            "answer": "A",
            **{f"image_{place}": images[place - 1] if place <= len(images) else None for place in range(1, 8)},
        }
        for number, (question, images) in enumerate(
            zip(("Look at <image 1> beside <image 2>. Which?", "What is in <image 1>?"), seen["mmmu_val"], strict=True)
        )
    ]
    for name, table in (("MME", mme), ("ai2d", ai2d), ("ChartQA", chartqa), ("RealWorldQA", real)):
        hub.add_repo(f"lmms-lab-encoder/{name}", {"README.md": card(), "data/test-0.parquet": parquet(table)})
    hub.add_repo("lmms-lab-encoder/MMMU", {"README.md": card(), "data/validation-0.parquet": parquet(mmmu)})
    parts = {"DocVQA": rows("docvqa_val", **document), "InfographicVQA": rows("infovqa_val", **document)}
    files: dict[str, bytes | str | Path] = {"README.md": card(**dict.fromkeys(parts, "validation"))}
    files |= {f"{name}/validation-0.parquet": parquet(table) for name, table in parts.items()}
    hub.add_repo("lmms-lab-encoder/DocVQA", files)


def serve_videos(hub: LoopbackHub, videos: Sequence[Path]) -> None:
    """The data sets of ``VIDEOS``, in the layout of lmms-eval's own tasks."""
    options = ["A. one.", "B. two.", "C. three.", "D. four."]
    about = {"duration": "short", "domain": "Knowledge", "sub_category": "Travel", "task_type": "OCR Problems"}
    videomme = [
        {**about, "videoID": f"v{n}", "question_id": str(n), "question": "What?", "options": options, "answer": "B"}
        for n in range(2)
    ]
    mlvu = [
        {"video_name": f"{n}.mp4", "question": "Which?\n(A) a\n(B) b", "answer": "A", "task_type": "plotQA"}
        for n in range(2)
    ]
    _serve(hub, videos, "lmms-eval/Video-MME", "videomme", "data/v{}.mp4", videomme)
    _serve(hub, videos, "sy1998/MLVU_dev", "mlvu_dev", "{}.mp4", mlvu)
    serve_table_8(hub, videos)


def serve_table_8(hub: LoopbackHub, videos: Sequence[Path]) -> None:
    """NExT-QA, ActivityNet-QA, VideoChatGPT and Video-DD; the last two are about the same videos."""
    choices = {f"a{place}": f"choice {place}" for place in range(5)}
    about = [{"video": n, "question": "why?", "qid": str(n), "type": "CW"} for n in range(2)]
    nextqa = {
        "MC": [{**row, "answer": 1, **choices} for row in about],
        "OE": [{**row, "answer": "to play", "additional_ref_answer": "for fun"} for row in about],
    }
    activity = [
        {"video_name": f"x{n}", "question": "who is it", "answer": "me", "question_id": str(n), "type": "3"}
        for n in range(2)
    ]
    detail = [{"video_name": f"d{n}", "question": "Describe it.", "answer": "Rain."} for n in range(2)]
    # Two questions on one video, which are compared with each other.
    pair = [{"video_name": "d0", "question_1": "None", "question_2": "None", "answer": "Rain."} for _ in range(2)]
    pair[0]["question_1"], pair[1]["question_2"] = "Does it rain?", "Is it wet?"
    chat = {"Generic": detail, "Temporal": detail, "Consistency": pair}
    _serve(hub, videos, "lmms-eval/NExTQA", "nextqa_mc_test", "NExTVideo/{}.mp4", nextqa)
    _serve(hub, videos, "lmms-eval/ActivityNetQA", "activitynetqa", "all_test/v_x{}.mp4", activity)
    _serve(hub, videos, "lmms-eval/VideoChatGPT", "video_dc499", "Test_Videos/d{}.mp4", chat)
    _serve(hub, videos, "lmms-lab/VideoDetailDescription", "video_dc499", "Test_Videos/d{}.mp4", detail)


def _serve(
    hub: LoopbackHub,
    videos: Sequence[Path],
    repo: str,
    task: str,
    name: str,
    rows: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Mapping[str, Any]]],
) -> None:
    """One repository of split "test": its table, or one a configuration, and an archive of the videos of ``task``.

    Args:
        name: where in the archive the video of a document is.
    """
    tables = rows if isinstance(rows, Mapping) else {"data": rows}
    configs = dict.fromkeys(rows, "test") if isinstance(rows, Mapping) else {}
    files: dict[str, bytes | str | Path] = {"README.md": card(**configs)}
    files |= {f"{config}/test-0.parquet": parquet(table) for config, table in tables.items()}
    files["videos.zip"] = zipped({name.format(number): videos[which] for number, which in enumerate(VIDEOS[task])})
    hub.add_repo(repo, files)
