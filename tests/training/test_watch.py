"""What a run says of itself: speed with each line, held-out loss and text NIAH with each checkpoint; evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from training_models import write_recipe

from vniah.training import evaluate
from vniah.training.data.shards import HELD_OUT, RingSequences
from vniah.training.losses import loss_and_hits
from vniah.training.recipe import load_recipe
from vniah.training.runner import run_recipe
from vniah.training.stages import EvaluateStage
from vniah.training.watch import held_out_sequences, text_probes


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared corpus with two sequences held out, a small decoder, four steps on it, and its evaluation."""
    from vniah.training.nano.vocabulary import build_tokenizer

    folder = tmp_path_factory.mktemp("watch")
    rng = np.random.default_rng(0)
    build_tokenizer().save_pretrained(folder / "tokenizer")
    words = ["time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child"]
    rows = [{"text": " ".join(rng.choice(words, 100)), "meta": {"redpajama_set_name": "book"}} for _ in range(20)]
    (folder / "corpus").mkdir()
    (folder / "corpus" / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    new = {"hidden_size": 32, "num_layers": 1, "intermediate_size": 48, "num_heads": 2, "num_kv_heads": 1}
    train = {"lr": 1e-2, "steps": 4, "precision": "fp32", "log_every": 1, "save_every": 2}
    stages: list[dict[str, Any]] = [
        {
            "name": "shards", "kind": "prepare_text", "source": str(folder / "corpus"), "workers": 1, "held_out": 2,
            "tokenizer": str(folder / "tokenizer"), "total_tokens": 1500, "sequence_length": 96, "short_share": 1.0,
        },
        {
            "name": "start", "kind": "text", "new": new, "sequence_length": 96,
            "data": {"phases": [{"start": 0, "length": 64, "batch": 1}]}, "train": {**train, "steps": 1},
        },
        {
            "name": "more", "kind": "text", "model_from": "start", "sequence_length": 96, "max_positions": 512,
            "data": {"shards": "shards"}, "train": train,
        },
        {
            "name": "asked", "kind": "evaluate", "model_from": "more", "frames": "", "text_lengths": "128",
            "text_depths": "0,50", "held_out": "shards",
        },
    ]  # fmt: skip
    run_recipe(load_recipe(write_recipe(folder, "out", stages)), say=lambda _: None)
    return folder / "out"


def test_held_out_loss_and_text_niah_stand_with_each_checkpoint(ran: Path) -> None:
    events = [json.loads(line) for line in (ran / "more" / "run" / "metrics.jsonl").open()]
    watched = [event for event in events if "held_out_loss" in event]
    assert [event["step"] for event in watched] == [2, 4]
    assert watched[1]["held_out_loss"] < watched[0]["held_out_loss"] and {e["text_niah"] for e in watched} == {0.0}
    history = json.loads((ran / "more" / "run" / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    assert [entry["held_out_loss"] for entry in history if "held_out_loss" in entry] == [
        event["held_out_loss"] for event in watched
    ], "a run that goes on from a checkpoint still has what was watched before it"
    assert all(event["tokens_per_second"] > 0 for event in events if "loss" in event)
    assert "mfu" not in events[0] and "peak_gib" not in events[0], "no device, no figure of one"


def test_the_stage_scores_the_model_that_was_watched(ran: Path) -> None:
    """The evaluate stage loads what was saved, and has the loss of the last checkpoint."""
    watched = [json.loads(line) for line in (ran / "more" / "run" / "metrics.jsonl").open()][-1]
    report = json.loads((ran / "asked" / "done.json").read_text())
    assert report["held_out_loss"] == pytest.approx(watched["held_out_loss"], abs=2e-5)
    assert report["held_out_accuracy"] == pytest.approx(watched["held_out_accuracy"], abs=2e-5)
    cells = json.loads((ran / "asked" / "text_niah.json").read_text())["cells"]
    assert [cell["depth_percent"] for cell in cells] == [0, 50, None] and "accuracy" not in report
    assert not (ran / "asked" / "vniah.json").exists()


def test_nobody_trains_on_what_is_held_out(ran: Path) -> None:
    shards = ran / "shards" / "shards"
    held = {ids.tobytes() for ids in held_out_sequences(shards)}
    dataset = RingSequences(str(shards), 96, seed=0, ring=False)
    manifest = json.loads((shards / "manifest.json").read_text())
    assert (len(held), manifest["held_out"], len(dataset)) == (2, 2, manifest["sequences"])
    seen = {
        np.append(b["input_ids"][0], b["labels"][0, -1:]).tobytes()
        for b in map(dataset.__getitem__, range(len(dataset)))
    }
    assert not held & seen
    (shards / HELD_OUT).rename(shards / "away")
    with pytest.raises(ValueError, match="holds no sequences out; prepare it anew"):
        next(held_out_sequences(shards))
    (shards / "away").rename(shards / HELD_OUT)


def test_probes_hold_the_needle_at_their_depth_and_ask_for_its_number(ran: Path) -> None:
    from vniah.training.load import load_tokenizer

    tokenizer = load_tokenizer(str(ran.parent / "tokenizer"))
    probes, held_out = text_probes(ran / "shards" / "shards", tokenizer, 96, seed=3)
    assert held_out == 2 and len(probes) == 7 and all(len(ids) == len(labels) == 96 for ids, labels in probes)
    starts = []
    for ids, labels in probes[2:]:
        answer = labels[labels >= 0]
        text = np.append(ids, answer[-1:])
        assert np.array_equal(text[-len(answer) :], answer) and len(answer) < 10
        places = [i for i in range(len(ids) - len(answer)) if np.array_equal(ids[i : i + len(answer)], answer)]
        starts.append(places[0])
    assert starts == sorted(starts) and len(set(starts)) == 5
    with pytest.raises(ValueError, match="16 tokens do not hold a needle"):
        text_probes(ran / "shards" / "shards", tokenizer, 16, seed=3)


def test_loss_and_hits_are_those_of_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    from vniah.training import losses

    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 30)
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(11, 6, generator=generator), torch.randn(10, 6, generator=generator)
    labels = torch.randint(0, 10, (11,), generator=generator)
    labels[:2] = (hidden @ weight.T)[:2].argmax(-1)
    labels[5] = -100
    logits = hidden @ weight.T
    loss, hits = loss_and_hits(hidden, weight, labels).tolist()
    assert loss == pytest.approx(F.cross_entropy(logits, labels, reduction="sum").item(), rel=1e-5)
    assert hits == (logits.argmax(-1) == labels).sum() >= 2
    assert loss_and_hits(hidden, weight, torch.full((11,), -100)).tolist() == [0, 0]


def test_an_evaluation_says_what_it_asks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The 7B recipes' grid: a set of needles and a film of one's own, in bf16."""
    asked: list[Any] = []
    cells = [
        {"num_frames": 4, "depth_percent": 0, "correct": True},
        {"num_frames": 4, "depth_percent": None, "correct": False},
    ]
    monkeypatch.setattr(evaluate, "score_by_tree", lambda source, given, **more: asked.append((given, more)) or cells)
    stage = EvaluateStage(
        name="e",
        model_from="m",
        frames="200,800",
        needle_set="lmms-lab/v_niah_needles",
        haystack="film.mp4",
        dtype="bfloat16",
    )
    assert evaluate.run(stage, tmp_path, seed=0, resolve=str)["accuracy"] == 1.0
    assert asked[0][0]["needles"] == "lmms-lab/v_niah_needles" and asked[0][1]["dtype"] == "bfloat16"
