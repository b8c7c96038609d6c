"""lmms-eval's own tasks, unchanged, through its command line with longva_ring: the tasks of the paper's tables.

Their datasets are two-document stand-ins on a Hub at loopback. Every answer that lmms-eval logs must be what the
model itself says to the same prompt; scores follow from there.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hub_server import LoopbackHub
from judge_server import JudgeServer
from tiny_checkpoints import write_longva
from upstream_data import PICTURES, VIDEOS, grade, picture, serve_images, serve_videos, write_videos

pytest.importorskip("lmms_eval")
from vniah.prompts import QWEN_1_5

TASKS = [*PICTURES, *VIDEOS]
# One of each kind: a picture, several between texts, a video.
SOME = ["docvqa_val", "mmmu_val", "videomme"]
FRAMES = 4
# Of these a task asks for the rest: 16, 32, 64, 128, or what lmms-eval's models take when nothing is said.
COMPARED_TOKENS = 12


class Model:
    """What the model itself answers, without the engine."""

    def __init__(self, folder: Path, videos: list[Path]) -> None:
        from longva_model import LongVAForConditionalGeneration, LongVAProcessor

        self.model = LongVAForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        self.processor = LongVAProcessor.from_pretrained(folder)
        self.videos = videos

    def visuals(self, task: str, doc_id: int) -> dict[str, list[Any]]:
        if task in PICTURES:
            return {"images": [picture(seed) for seed in PICTURES[task][doc_id]]}
        return {"videos": [self.videos[VIDEOS[task][doc_id]]]}

    def says(self, task: str, doc_id: int, text: str) -> str:
        """The first words of the answer to a user turn with placeholders."""
        inputs = self.processor(
            text=QWEN_1_5.pre + text + QWEN_1_5.post,
            **self.visuals(task, doc_id),
            num_frames=FRAMES,
            return_tensors="pt",
        )
        out = self.model.generate(**inputs, max_new_tokens=COMPARED_TOKENS, do_sample=False)
        ids = out[0, inputs["input_ids"].shape[1] :].tolist()
        end = self.model.generation_config.eos_token_id
        ids = ids[: ids.index(end)] if end in ids else ids
        return str(self.processor.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def first(self, task: str, doc_id: int, text: str) -> str:
        """The same, all visuals before the text."""
        count = len(PICTURES[task][doc_id]) if task in PICTURES else 1
        return self.says(task, doc_id, " ".join(["<image>"] * count) + "\n" + text)


def environment(hub: LoopbackHub, tmp_path: Path, judge: str) -> dict[str, str]:
    """A user who is logged in: all of these tasks but mmmu_val ask the Hub for nothing without a token."""
    env: dict[str, str] = hub.env(
        tmp_path / "home",
        HF_TOKEN="hf_loopback",
        VNIAH_CACHE=str(tmp_path / "cache"),
        OPENAI_API_URL=f"{judge}/chat/completions",
        OPENAI_API_KEY="none",
        OMP_NUM_THREADS="1",
    )
    return env


def run(arguments: list[str], env: dict[str, str], tmp_path: Path, launcher: tuple[str, ...] = ()) -> str:
    command = [sys.executable, *launcher, "-m", "lmms_eval", *arguments]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    return done.stdout[-2000:] + done.stderr[-6000:]


def read(out: Path, log: str) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Results by task and logged samples by task, of one output folder."""
    files = list(out.rglob("*results.json"))
    assert len(files) == 1, f"no results file\n{log}"
    samples = {}
    for file in out.rglob("*_samples_*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        samples[file.stem.partition("_samples_")[2]] = sorted(rows, key=lambda row: int(row["doc_id"]))
    return dict(json.loads(files[0].read_text())["results"]), samples


def answers(samples: dict[str, list[dict[str, Any]]]) -> dict[str, list[str]]:
    return {task: [str(row["filtered_resps"]) for row in rows] for task, rows in samples.items()}


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [pytest.param(TASKS, id="all"), pytest.param(SOME, id="some")])
def test_the_papers_tasks_simple_and_chat(tasks: list[str], loopback_hub: LoopbackHub, tmp_path: Path) -> None:
    videos = write_videos(tmp_path / "videos")
    serve_images(loopback_hub)
    serve_videos(loopback_hub, videos)
    folder = write_longva(tmp_path / "model")
    common = {
        "model": "longva_ring",
        "model_args": f"pretrained={folder},dtype=float32,device=cpu,max_frames_num={FRAMES}",
        "tasks": ",".join(tasks),
        "limit": 2,
        "log_samples": True,
    }
    # One process for both protocols. Simple goes first: in messages, mmmu switches its prompts for good.
    (tmp_path / "runs.yaml").write_text(
        yaml.safe_dump(
            [
                {**common, "force_simple": True, "output_path": str(tmp_path / "simple")},
                {**common, "force_simple": False, "output_path": str(tmp_path / "chat")},
            ]
        )
    )
    with JudgeServer(grade) as judge:
        env = environment(loopback_hub, tmp_path, judge.url)
        log = run(["--config", str(tmp_path / "runs.yaml")], env, tmp_path)
    model = Model(folder, videos)
    for protocol in ("simple", "chat"):
        results, samples = read(tmp_path / protocol, log)
        assert set(samples) == set(tasks), log
        said = answers(samples)
        wanted: dict[str, list[str]] = {}
        for task, rows in samples.items():
            assert len(rows) == 2, task
            wanted[task] = [model.first(task, number, row["input"]) for number, row in enumerate(rows)]
        if protocol == "chat":
            # mmmu's own messages: pictures stand where its text names them.
            rest = "\nA. one\nB. two\n\nAnswer with the option's letter from the given choices directly."
            for number, text in enumerate(("Look at<image>\nbeside<image>\n. Which?", "What is in<image>\n?")):
                wanted["mmmu_val"][number] = model.says("mmmu_val", number, text + rest)
        for task in tasks:
            for found, whole in zip(said[task], wanted[task], strict=True):
                assert whole and found.startswith(whole), (protocol, task)
        assert all(len(set(one)) == 2 for one in said.values()), "each document has an answer of its own"
        for task, metric in (("realworldqa", "exact_match"), ("docvqa_val", "anls"), ("chartqa", "relaxed_overall")):
            if task in tasks:
                mean = sum(float(row[metric]) for row in samples[task]) / 2
                assert results[task][f"{metric},none"] == pytest.approx(mean)
        if "video_dc499" in tasks:
            assert results["activitynetqa"]["gpt_eval_score,none"] == 4.0
            assert results["activitynetqa"]["gpt_eval_accuracy,none"] == 100.0
            assert results["video_dc499"]["gpt_eval_score,none"] == 3.0


@pytest.mark.slow
def test_two_processes_give_what_one_gives(loopback_hub: LoopbackHub, tmp_path: Path) -> None:
    """Data-parallel under accelerate and under torchrun: same answers, same scores, more documents than processes."""
    videos = write_videos(tmp_path / "videos")
    serve_images(loopback_hub)
    serve_videos(loopback_hub, videos)
    folder = write_longva(tmp_path / "model")
    env = environment(loopback_hub, tmp_path, "http://127.0.0.1:9")
    model_args = f"pretrained={folder},dtype=float32,device=cpu,max_frames_num={FRAMES}"
    found = {}
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    # For accelerate "multi_gpu" means its own launcher, which takes the CPU where there is no GPU.
    accelerate = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
    launchers: dict[str, tuple[tuple[str, ...], str]] = {
        "one": ((), "auto"),
        "accelerate": (accelerate, "branch"),
        "torchrun": (torchrun, "auto"),
        "ring": (torchrun, "ring"),
    }
    for name, (launcher, parallel) in launchers.items():
        journal = tmp_path / f"{name}.jsonl"
        arguments = ["--model", "longva_ring", "--model_args", f"{model_args},journal={journal},parallel={parallel}"]
        arguments += ["--tasks", "mme,ai2d,chartqa,mlvu_dev", "--log_samples", "--output_path", str(tmp_path / name)]
        log = run(arguments, env, tmp_path, launcher)
        results, samples = read(tmp_path / name, log)
        scores = {task: {k: v for k, v in one.items() if "stderr" not in k} for task, one in results.items()}
        found[name] = (scores, answers(samples))
        journals = [file for file in (journal, tmp_path / f"{name}.jsonl.rank1") if file.exists()]
        shares = [[json.loads(line)["key"] for line in file.read_text().splitlines()] for file in journals]
        # The first journal ends whole; the other's is what the second process did, nothing of its own in a ring.
        assert len(set(shares[0])) == 8
        second = len(set(shares[1])) if len(shares) == 2 else 0
        assert 0 < second < 8 if name in ("accelerate", "torchrun") else second == 0
    for name in launchers:
        assert found[name] == found["one"], name
    assert set(found["one"][1]) == {"mme", "ai2d", "chartqa", "mlvu_dev"}
