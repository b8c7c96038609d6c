"""The whole text stage under torchrun: two gloo processes share every sequence and end where one process does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_models import write_recipe

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
FSDP = str(Path(__file__).with_name("fsdp_on_gloo.py"))


def recipe(folder: Path, name: str, **train: Any) -> Path:
    """Preparation, a decoder from nothing, and its extension, with ``train`` settings of the last."""
    rng = np.random.default_rng(0)
    corpus = folder / "corpus"
    if not corpus.exists():
        corpus.mkdir()
        words = ["time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school"]
        rows = [
            {"text": " ".join(rng.choice(words, int(rng.integers(20, 200)))), "meta": {"redpajama_set_name": "book"}}
            for _ in range(60)
        ]
        (corpus / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
        from vniah.training.nano.vocabulary import build_tokenizer

        build_tokenizer().save_pretrained(folder / "tokenizer")
    stages: list[dict[str, Any]] = [
        {
            "name": "shards",
            "kind": "prepare_text",
            "source": str(corpus),
            "tokenizer": str(folder / "tokenizer"),
            "total_tokens": 2000,
            "short_share": 1.0,
            "sequence_length": 64,
            "workers": 1,
        },
        {
            "name": "start",
            "kind": "text",
            "new": {"hidden_size": 32, "num_layers": 2, "intermediate_size": 48, "num_heads": 2, "num_kv_heads": 1},
            "sequence_length": 64,
            "data": {"phases": [{"start": 0, "length": 64, "batch": 2}]},
            "train": {"lr": 1e-3, "steps": 1, "precision": "fp32"},
        },
        {
            "name": "extension",
            "kind": "text",
            "model_from": "start",
            "rope_theta": 1e6,
            "sequence_length": 64,
            "data": {"shards": "shards"},
            "train": {
                "lr": 1e-2,
                "steps": 4,
                "accumulation": 2,
                "precision": "fp32",
                "checkpointing": "offload",
                "save_every": 2,
                "log_every": 1,
                **train,
            },
        },
    ]
    if (folder / "alone" / "start" / "done.json").is_file() and train.get("sharding"):
        # What two ranks would train without sharding is taken from the run on one.
        stages = [{**stages[2], "model_from": str(folder / "alone" / "start" / "model")}]
        stages[0]["data"] = {"shards": str(folder / "alone" / "shards" / "shards")}
    return write_recipe(folder, name, stages)


def run(command: list[str]) -> str:
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def torchrun(*arguments: str) -> str:
    return run([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", *arguments])


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "extension" / "model" / "model.safetensors")


def losses(folder: Path) -> list[float]:
    lines = (folder / "extension" / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on one process."""
    folder = tmp_path_factory.mktemp("ring")
    run([sys.executable, "-m", "vniah.cli", "train", str(recipe(folder, "alone"))])
    return folder


@pytest.mark.slow
def test_two_ranks_end_where_one_does(alone: Path) -> None:
    """From the corpus on: the first rank prepares, the other waits."""
    torchrun("-m", "vniah.cli", "train", str(recipe(alone, "ring", attention="ring", tile_tokens=8)))
    assert losses(alone / "ring") == pytest.approx(losses(alone / "alone"), rel=1e-4)
    for key, value in weights(alone / "alone").items():
        assert (weights(alone / "ring")[key] - value).abs().max() < 1e-3, key


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_sharded_by_fsdp2_with_offload_and_killed_it_ends_there_too(alone: Path, precision: str) -> None:
    name = f"sharded_{precision}"
    settings = {"attention": "ring", "sharding": "fsdp2", "offload": True, "precision": precision, "tile_tokens": 8}
    path = str(recipe(alone, name, **settings))
    said = torchrun(FSDP, "train", path)
    assert "'FSDPQwen2DecoderLayer': 2" in said
    whole = losses(alone / name), weights(alone / name)
    assert whole[0] == pytest.approx(losses(alone / "alone"), rel=1e-4 if precision == "fp32" else 1e-2)
    stage = alone / name / "extension"
    (stage / "done.json").unlink()
    newest = stage / "run" / "checkpoint-4"
    if precision == "fp32":
        (newest / "trainer_state.json").unlink()  # as if killed while it was written
    else:
        assert {value.dtype for value in whole[1].values()} == {torch.bfloat16}
        shard = next((newest / "pytorch_model_fsdp_0").glob("__1_*.distcp"))  # what the second rank wrote
        shard.write_bytes(shard.read_bytes()[:-64] + bytes(64))
    assert "sharded" in torchrun(FSDP, "train", path)
    assert losses(alone / name) == whole[0]
    for key, value in weights(alone / name).items():
        assert value.equal(whole[1][key]), key
    assert (stage / "run" / "damaged-checkpoint-4").exists() == (precision == "bf16")


@pytest.mark.slow
def test_fsdp2_where_accelerate_would_not_shard_is_an_error(alone: Path) -> None:
    path = recipe(alone, "unsharded", sharding="fsdp2")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
        "-m",
        "vniah.cli",
    ]
    done = subprocess.run([*command, "train", str(path)], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode and "sharding: fsdp2 works on CUDA devices under a launcher" in done.stderr
