"""Preference data and a tiny DPO run on frames, by TRL."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from training_models import nano_folder, pair

from vniah.training.dpo import PreferenceCollator, check_pair, read_pairs
from vniah.training.processes import BadSampleError
from vniah.training.stages import DpoStage, Train


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("v1", "v2"):
        folder = tmp_path / "videos" / name
        folder.mkdir(parents=True)
        for number in range(7):
            pixels = rng.integers(0, 255, (24, 40, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:03d}.jpg")
    (tmp_path / "videos" / "empty").mkdir()
    return tmp_path / "videos"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"chosen": " "}, "chosen is missing"),
        ({"rejected": None}, "rejected is missing"),
        ({"rejected": "red"}, "the same"),
        ({"video": "v9"}, "no video 'v9'"),
        ({"video": "empty"}, "no video 'empty'"),
        ({"video": "../x"}, "leaves the videos folder"),
    ],
)
def test_bad_pairs(videos: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadSampleError, match=reason):
        check_pair(pair(**changes), str(videos))


def test_bad_pairs_are_counted_and_stop_the_run(videos: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(p) for p in (pair(), pair(id="worse", chosen=""), pair(video="v2"))))
    pairs, manifest = read_pairs([str(path)], str(videos), 0.5)
    assert len(pairs) == 2 and manifest["bad"] == ["worse: chosen is missing or empty"]
    assert pairs[0]["prompt"] == "What?"
    with pytest.raises(ValueError, match="1 of 3 pairs are bad"):
        read_pairs([str(path)], str(videos), 0.01)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"attention": "ring"}, "takes no attention: ring"),
        ({"checkpointing": "offload"}, "checkpointing: offload"),
        ({"tower_lr": 1e-6}, "tower_lr"),
    ],
)
def test_settings_that_dpo_would_not_follow_are_errors(train: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DpoStage(name="d", model_from="m", json=("p",), videos="v", train=Train(lr=1e-6, steps=1, **train))


def test_videos_that_cannot_be_decoded_and_pairs_too_long_are_found_before_the_first_step(
    videos: Path, tmp_path: Path
) -> None:
    from longva_model import LongVAProcessor
    from vniah.prompts import NANO

    processor = LongVAProcessor.from_pretrained(str(nano_folder(tmp_path / "model")))
    collator = PreferenceCollator(processor, num_frames=3, max_length=60, template=NANO)
    corrupt = next((videos / "v2").glob("003*"))
    corrupt.write_bytes(corrupt.read_bytes()[:100])
    (videos / "v3.mp4").write_bytes(b"no film")
    path = tmp_path / "pairs.jsonl"
    lines = [
        pair(id="good"),
        pair(id="frame", video="v2"),
        pair(id="film", video="v3"),
        pair(id="long", chosen="a " * 90),
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    pairs, manifest = read_pairs([str(path)], str(videos), 0.9, collator)
    assert len(pairs) == 1 and manifest["num_bad"] == 3
    assert [line.split(":")[0] for line in manifest["bad"]] == ["frame", "film", "long"]
    assert "above max_length 60" in manifest["bad"][2]


def test_pairs_that_were_looked_at_are_looked_at_again_where_a_video_or_a_line_is_another(
    videos: Path, tmp_path: Path
) -> None:
    looked: list[str] = []

    class Collator:
        num_frames, max_length = 3, 60

        def __call__(self, pairs: Any) -> None:
            looked.append(pairs[0]["chosen"])
            if (videos / "v2" / "broken").exists():
                raise ValueError("broken")

    path = tmp_path / "pairs.jsonl"

    def read(*lines: dict[str, Any], share: float = 0.5) -> tuple[Any, list[str]]:
        path.write_text("\n".join(map(json.dumps, lines)))
        looked.clear()
        return read_pairs([str(path)], str(videos), share, Collator(), folder=tmp_path / "parts"), list(looked)  # type: ignore[arg-type]

    lines = pair(id="a"), pair(id="b", video="v2", chosen="a lion")
    first, seen = read(*lines)
    assert seen == ["red", "a lion"]
    assert read(*lines) == (first, [])
    frame = next((videos / "v2").glob("*.jpg"))
    frame.write_bytes(frame.read_bytes() + b"x")
    assert read(*lines) == (first, ["red", "a lion"])
    assert read(lines[0], pair(id="c", chosen="green"))[1] == ["red", "green"]
    # What was bad and is mended is no longer bad.
    (videos / "v2" / "broken").touch()
    with pytest.raises(ValueError, match="2 of 2 pairs are bad"):
        read(*lines, share=0.1)
    (videos / "v2" / "broken").unlink()
    assert read(*lines, share=0.1)[0] == first


@pytest.mark.parametrize("found", ["1.15.3", "1.0.0", None])
def test_a_trl_that_leaves_videos_out_is_refused_by_name(found: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    from vniah.training import dpo

    def version(_: str) -> str:
        if found is None:
            raise importlib.metadata.PackageNotFoundError
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)
    there = f"{found} is installed" if found else "none is installed"
    with pytest.raises(ValueError, match=rf"^DPO needs TRL 1\.16 or newer.*; {there}: pip install 'vniah\[train\]'$"):
        dpo.check_trl()


def test_a_dpo_run_prefers_the_chosen_answer(videos: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    from vniah.training import dpo

    model = nano_folder(tmp_path / "model")
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(pair(id=str(i), video=f"v{1 + i % 2}")) for i in range(4)))
    stage = DpoStage(
        name="dpo",
        model_from=str(model),
        json=(str(path),),
        videos=str(videos),
        num_frames=3,
        max_length=200,
        train=Train(lr=2e-3, steps=6, batch_size=2, precision="fp32", log_every=1),
    )
    report = dpo.run(stage, tmp_path / "out", seed=1, resolve=str)
    curve = [json.loads(line) for line in (tmp_path / "out/run/metrics.jsonl").read_text().splitlines()]
    assert curve[0]["loss"] == pytest.approx(np.log(2), abs=1e-3)  # model and reference are equal before the first step
    assert report["loss"] < 0.6 < curve[0]["loss"] and report["margin"] > 0
    assert (tmp_path / "out/model/model.safetensors").is_file()


def test_the_collator_takes_the_frames_it_is_asked_for(videos: Path, tmp_path: Path) -> None:
    from longva_model import LongVAProcessor
    from vniah.prompts import NANO

    processor = LongVAProcessor.from_pretrained(str(nano_folder(tmp_path / "model")))
    collator = PreferenceCollator(processor, num_frames=3, max_length=200, template=NANO)
    batch = collator([check_pair(pair(), str(videos)), check_pair(pair(video="v2", chosen="a red one"), str(videos))])
    assert batch["pixel_values_videos"].shape == (4, 3, 3, 32, 32)
    learnt = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)]
    texts = [processor.tokenizer.decode(ids).split("<|im_end|>")[0].strip() for ids in learnt]
    assert texts == ["red", "a red one", "blue", "blue"]
    with pytest.raises(ValueError, match="above max_length 10"):
        PreferenceCollator(processor, num_frames=3, max_length=10, template=NANO)([check_pair(pair(), str(videos))])
