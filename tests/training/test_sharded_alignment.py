"""Alignment and DPO by two sharded ranks: text-only batches on one of them, other numbers of tiles, frozen parts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from training_models import nano_folder, nano_parts, pair, write_recipe

FSDP = str(Path(__file__).with_name("fsdp_on_gloo.py"))


def launch(*arguments: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder, a tower and LLaVA-format data with one, two or no images a sample, of one to six tiles."""
    from transformers import CLIPVisionModel

    from vniah.training.load import save_model

    folder = tmp_path_factory.mktemp("world")
    decoder, tokenizer, tower = nano_parts(2, length=2048)
    save_model(decoder, tokenizer, folder / "decoder")
    save_model(CLIPVisionModel(tower), None, folder / "tower")
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    samples: list[dict[str, Any]] = []
    for number in range(8):
        width, height = [(32, 32), (96, 64)][number % 2]
        pixels = rng.integers(0, 255, (height, width, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        samples.append({"id": str(number), "image": f"{number}.png", "conversations": asked("<image>\nwhat day")})
    # Three of eleven: whatever the order, some batch has text alone on one rank and images on the other.
    samples += [{"id": f"text{number}", "conversations": asked("what day")} for number in range(3)]
    samples.append({"id": "two", "image": ["0.png", "1.png"], "conversations": asked("<image>\n<image>\nwhat day")})
    (folder / "data.json").write_text(json.dumps(samples))
    return folder


def asked(question: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": "man thing"}]


def recipe(world: Path, name: str, **train: Any) -> Path:
    def stage(name: str, parts: list[str], template: str, merge: str, **more: Any) -> dict[str, Any]:
        data = {"json": [str(world / "data.json")], "images": str(world / "images"), "template": template}
        settings = {"lr": 1e-3, "epochs": 1, "precision": "fp32", "checkpointing": "full", "log_every": 1, **train}
        data |= {"merge": merge, "max_length": 2000, "group_by_length": False}
        return {"name": name, "kind": "align", "parts": parts, "data": data, "train": settings, **more}

    start = {"model_from": str(world / "decoder"), "tower_from": str(world / "tower")}
    stages = [
        stage("one", ["projector"], "plain", "square", **start),
        stage("two", ["tower", "projector", "decoder"], "qwen_1_5", "unires", model_from="one"),
    ]
    return write_recipe(world, name, stages)


def losses(folder: Path) -> list[float]:
    lines = [line for name in ("one", "two") for line in (folder / name / "run" / "metrics.jsonl").open()]
    return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def alone(world: Path) -> list[float]:
    """Losses of both stages on one process, with the batches of two ranks."""
    from vniah.training.recipe import load_recipe
    from vniah.training.runner import run_recipe

    run_recipe(load_recipe(recipe(world, "alone", batch_size=4)), say=lambda _: None)
    return losses(world / "alone")


@pytest.mark.slow
def test_both_stages_sharded_end_where_one_process_does(world: Path, alone: list[float]) -> None:
    path = recipe(world, "sharded", batch_size=2, sharding="fsdp2")
    said = launch(FSDP, "train", str(path))
    assert "'FSDPCLIPEncoderLayer': 2" in said and "'FSDPQwen2DecoderLayer': 2" in said
    assert losses(world / "sharded") == pytest.approx(alone, rel=1e-4)


@pytest.mark.slow
def test_both_stages_on_two_ranks_without_sharding(world: Path, alone: list[float]) -> None:
    launch("-m", "vniah.cli", "train", str(recipe(world, "replicated", batch_size=2)))
    assert losses(world / "replicated") == pytest.approx(alone, rel=1e-4)


@pytest.mark.slow
def test_dpo_sharded(world: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    for number in range(3):
        (tmp_path / "videos" / "v1").mkdir(parents=True, exist_ok=True)
        pixels = np.full((24, 40, 3), 60 * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "videos" / "v1" / f"{number}.png")
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(pair(id=str(i))) for i in range(4)))
    stage = {
        "name": "dpo",
        "kind": "dpo",
        "model_from": str(nano_folder(tmp_path / "model")),
        "json": [str(tmp_path / "pairs.jsonl")],
        "videos": str(tmp_path / "videos"),
        "num_frames": 3,
        "train": {"lr": 2e-3, "steps": 3, "sharding": "fsdp2", "checkpointing": "full", "log_every": 1},
    }
    path = write_recipe(tmp_path, "out", [stage])
    assert "'FSDPQwen2DecoderLayer': 1" in launch(FSDP, "train", str(path))
    curve = [json.loads(line)["loss"] for line in (tmp_path / "out/dpo/run/metrics.jsonl").open()]
    assert curve[0] == pytest.approx(np.log(2), abs=5e-3) and curve[-1] < curve[0] - 0.02
    assert (tmp_path / "out/dpo/model/model.safetensors").is_file()
