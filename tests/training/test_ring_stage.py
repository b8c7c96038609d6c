"""The whole text stage under torchrun: two gloo processes share every sequence and end where one process does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml


def recipe(folder: Path, name: str, attention: str, sharding: str) -> Path:
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
        from vniah.training.nano.vocabulary import save_tokenizer

        save_tokenizer(folder / "tokenizer")
    stages = [
        {
            "name": "shards",
            "kind": "prepare_text",
            "source": str(corpus),
            "tokenizer": str(folder / "tokenizer"),
            "total_tokens": 2000,
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
                "attention": attention,
                "checkpointing": "offload",
                "sharding": sharding,
                "log_every": 1,
            },
        },
    ]
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, "output": str(folder / name), "stages": stages}))
    return path


def losses(folder: Path) -> list[float]:
    lines = (folder / "extension" / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_two_ranks_end_where_one_does(tmp_path: Path, sharding: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    alone = recipe(tmp_path, "alone", "sdpa", "none")
    subprocess.run([sys.executable, "-m", "vniah.cli", "train", str(alone)], env=environment, check=True, timeout=300)
    shared = recipe(tmp_path, "ring", "ring", sharding)
    for stage in ("shards", "start"):
        command = [sys.executable, "-m", "vniah.cli", "train", str(shared), "--stage", stage]
        subprocess.run(command, env=environment, check=True, timeout=300)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command += ["-m", "vniah.cli", "train", str(shared), "--stage", "extension"]
    subprocess.run(command, env=environment, check=True, timeout=300)
    assert losses(tmp_path / "ring") == pytest.approx(losses(tmp_path / "alone"), rel=1e-4)

    from safetensors.torch import load_file

    one, two = (load_file(tmp_path / name / "extension" / "model" / "model.safetensors") for name in ("alone", "ring"))
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert (two[key] - value).abs().max() < 1e-3, key
