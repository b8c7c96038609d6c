"""The DPO stage: preference optimisation on video frames, by TRL (LLaVA-Hound; reference section 5).

Its data is JSON lines of {"id", "video", "prompt", "chosen", "rejected"}; the video is a file or a folder of frames
below the videos folder. Shape legend: P pairs; a batch holds 2P sequences, chosen first, then rejected, of T tokens;
F frames of edge S.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vniah.files import read_json, read_json_lines
from vniah.prompts import QWEN_1_5, PromptTemplate
from vniah.training.checkpoints import check_identity, write_json
from vniah.training.load import load, save_trained
from vniah.training.processes import (
    BadSampleError,
    check_bad,
    map_parts,
    rank,
    remembered,
    sample_id,
    wait_for,
    world_size,
)
from vniah.training.stages import DpoStage, as_data
from vniah.training.watch import watched

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
PART_PAIRS = 250
_TRL = "1.16"


def run(stage: DpoStage, folder: Path, *, seed: int, resolve: Callable[[str], str]) -> dict[str, Any]:
    """Train all parts against a frozen copy; the model goes to ``folder/model``.

    Raises:
        ValueError: TRL is not installed (with how to install it), or too many bad pairs.
        OSError: no room for the checkpoints.
    """
    check_trl()
    import torch
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from longva_model import LongVAForConditionalGeneration, LongVAProcessor
    from longva_model.renamed import checkpointing_keyword
    from vniah.prompts import get_template
    from vniah.training.fit import check_room, prepare_model, run_trainer, steps_and_passes, training_arguments

    train, run_folder, source = stage.train, folder / "run", resolve(stage.model_from)
    check_identity(run_folder, {"stage": as_data(stage), "seed": seed, "ranks": world_size()})
    model = load(LongVAForConditionalGeneration, source, train)
    # Never stepped, the reference needs no master weights.
    dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
    frozen = load(LongVAForConditionalGeneration, source, train, dtype=dtype)
    for each in (model, frozen):
        each.set_attn_implementation(train.attention)
    prepare_model(model)
    prepare_model(frozen.requires_grad_(False))
    check_room(model, train, run_folder)
    processor = LongVAProcessor.from_pretrained(source, trust_remote_code=False)
    template = get_template(getattr(model.config, "chat_template_name", "qwen_1_5"))
    collator = PreferenceCollator(processor, stage.num_frames, stage.max_length, template)
    pairs, manifest = _pairs_of(stage, folder, collator)
    steps, passes = steps_and_passes(train, len(pairs))
    order = [pair for epoch in range(passes) for pair in Dataset.from_list(pairs).shuffle(seed=seed + epoch)]
    more = {"beta": stage.beta, "loss_type": ["sigmoid"], "max_length": None}
    more[checkpointing_keyword(DPOConfig)] = train.checkpointing != "none"

    class SharedTrainer(watched(DPOTrainer, train, 1)):  # type: ignore[misc]
        """Shards the reference by layers, from the first rank's weights; TRL takes each rank's, and as one piece."""

        def create_accelerator_and_postprocess(self) -> None:
            super().create_accelerator_and_postprocess()
            if self.is_fsdp_enabled:
                fsdp2_prepare_model(self.accelerator, frozen)

    trainer = SharedTrainer(
        model=model,
        ref_model=frozen,
        args=training_arguments(train, run_folder, seed, steps, DPOConfig, **more),
        data_collator=collator,
        train_dataset=Dataset.from_list(order),
        processing_class=processor,
    )

    def save(trainer: Any) -> None:
        save_trained(trainer, processor, folder / "model", train)

    result, last = run_trainer(trainer, train, run_folder, save)
    return {
        "steps": int(result.global_step),
        "loss": last.get("loss", float("nan")),
        "margin": last.get("rewards/margins"),
        "samples": manifest["samples"],
        "num_bad": manifest["num_bad"],
    }


def check_trl() -> None:
    """Raise ValueError, saying what to install, where TRL is not there or does not hand all of a batch to the model.

    Before 1.16 it hands on the inputs that it knows by name, videos not among them, and looks up the log-probability
    of placeholder ids.
    """
    from importlib.metadata import PackageNotFoundError, version

    from packaging.version import Version

    try:
        found = version("trl")
    except PackageNotFoundError:
        found = ""
    if not found or Version(found) < Version(_TRL):
        there = f"{found} is installed" if found else "none is installed"
        python = ", which needs Python 3.11 or newer" if sys.version_info < (3, 11) else ""
        raise ValueError(f"DPO needs TRL {_TRL} or newer{python}; {there}: pip install 'vniah[train]'")


def _pairs_of(stage: DpoStage, folder: Path, collator: PreferenceCollator) -> tuple[list[dict[str, Any]], Any]:
    """The good pairs and their manifest: looked at by the first rank, read by the others.

    A part whose lines and videos are those of last time (a file by its size and date) is not looked at again.
    """
    listed, manifest_path = folder / "pairs.json", folder / "manifest.json"
    if rank() > 0:
        wait_for(manifest_path)
        return read_json(listed), read_json(manifest_path)
    parts = folder / "pairs"
    pairs, manifest = read_pairs(stage.json, stage.videos, stage.max_bad_share, collator, stage.train.workers, parts)
    check_identity(parts, {"pairs": hashlib.sha256(json.dumps(pairs).encode()).hexdigest()})
    write_json(listed, pairs)
    write_json(manifest_path, manifest)
    return pairs, manifest


def read_pairs(
    paths: Sequence[str],
    videos: str,
    max_bad_share: float,
    collator: PreferenceCollator | None = None,
    workers: int = 1,
    folder: Path | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All good pairs, and a manifest {"samples", "num_bad", "bad"}.

    Every pair goes through the ``collator`` once: its frames are decoded and its length is measured. In ``folder``
    the reports of parts are kept for the next time; where too many pairs are bad, those with bad ones are forgotten.

    Raises:
        ValueError: a file that is not JSON lines, more than ``max_bad_share`` of the pairs are bad, or none is good.
    """
    samples = [(sample_id(sample, line - 1), sample) for path in paths for line, sample in read_json_lines(path)]
    starts = range(0, len(samples), PART_PAIRS)
    parts = [
        (folder and folder / f"part-{number:05d}.json", samples[start : start + PART_PAIRS])
        for number, start in enumerate(starts)
    ]
    reports = map_parts(functools.partial(_look_once, videos, collator), parts, workers)
    pairs = [pair for report in reports for pair in report["pairs"]]
    bad = [line for report in reports for line in report["bad"]]
    forget = [path for (path, _), report in zip(parts, reports, strict=True) if path and report["bad"]]
    check_bad("pairs", bad, len(samples), max_bad_share, forget=forget)
    if not pairs:
        raise ValueError(f"no pairs in {', '.join(paths)}")
    return pairs, {"samples": len(pairs), "num_bad": len(bad), "bad": bad}


def _look_once(
    videos: str, collator: PreferenceCollator | None, part: tuple[Path | None, list[tuple[str, Any]]]
) -> dict[str, Any]:
    """The good pairs of a part, and why the others are bad, by the report at its path where that is still true."""
    path, samples = part
    if path is None:
        return _look(videos, collator, samples)
    limits = collator and [collator.num_frames, collator.max_length]
    seen = [_stamps(sample, videos) for _, sample in samples]
    return remembered(path, [samples, videos, limits, seen], lambda: _look(videos, collator, samples))


def _stamps(sample: Any, videos: str) -> list[Any]:
    """What tells a video from itself of another day: names, sizes and dates of its files."""
    try:
        path = Path(check_pair(sample, videos)["images"][0])
    except BadSampleError as error:
        return [str(error)]
    stats = [(each.name, each.stat()) for each in (_frame_files(path) if path.is_dir() else [path])]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def _look(videos: str, collator: PreferenceCollator | None, part: list[tuple[str, Any]]) -> dict[str, Any]:
    pairs: list[dict[str, Any]] = []
    bad: list[str] = []
    for name, sample in part:
        try:
            pair = check_pair(sample, videos)
            if collator is not None:
                collator([pair])
        except (OSError, SyntaxError, ValueError) as error:
            bad.append(f"{name}: {error}")
        else:
            pairs.append(pair)
    return {"pairs": pairs, "bad": bad}


def check_pair(sample: Any, videos: str) -> dict[str, Any]:
    """One pair with its video's path. BadSampleError: a field is missing or empty, answers are equal, or no video."""
    texts = {}
    for key in ("video", "prompt", "chosen", "rejected"):
        value = sample.get(key) if isinstance(sample, dict) else None
        if not isinstance(value, str) or not value.strip():
            raise BadSampleError(f"{key} is missing or empty")
        texts[key] = value
    if texts["chosen"] == texts["rejected"]:
        raise BadSampleError("the chosen and the rejected answer are the same")
    root = Path(videos).resolve()
    path = (root / texts["video"]).resolve()
    if not path.is_relative_to(root):
        raise BadSampleError(f"the video path {texts['video']!r} leaves the videos folder")
    found = next((p for p in (path, path.with_name(path.name + ".mp4")) if p.exists()), None)
    if found is None or (found.is_dir() and not _frame_files(found)):
        raise BadSampleError(f"no video {texts['video']!r}")
    prompt = re.sub("<image>|<video>", "", texts["prompt"]).strip("\n")
    return {"images": [str(found)], "prompt": prompt, "chosen": texts["chosen"], "rejected": texts["rejected"]}


def _frame_files(folder: Path) -> list[Path]:
    """The frames of a video that is a folder, in name order."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in FRAME_SUFFIXES)


@dataclass(frozen=True)
class PreferenceCollator:
    """Pairs to what TRL's DPOTrainer takes: ids, masks, and the frames of each video twice.

    ``num_frames`` of each video are evenly spread (reference section 5: linspace). Nothing is cut: a sequence of more
    than ``max_length`` tokens is an error.
    """

    processor: Any
    num_frames: int
    max_length: int
    template: PromptTemplate = QWEN_1_5

    def __call__(self, pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """``input_ids``, ``attention_mask``, ``completion_mask`` (2P, T), ``pixel_values_videos`` (2P, F, 3, S, S)."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        from longva_model.pictures.opening import load_frames

        tokenizer, paths = self.processor.tokenizer, [Path(pair["images"][0]) for pair in pairs]
        videos = [load_frames(_frame_files(path) if path.is_dir() else path, self.num_frames) for path in paths]
        texts = [f"{self.template.pre}<video>\n{pair['prompt']}{self.template.post}" for pair in pairs]
        inputs = self.processor(text=texts, videos=videos, padding=False)
        end = tokenizer(self.template.closing, add_special_tokens=False).input_ids
        rows, completions = [], []
        for key in ("chosen", "rejected"):
            for pair, prompt in zip(pairs, inputs["input_ids"], strict=True):
                answer = [*tokenizer(pair[key], add_special_tokens=False).input_ids, *end]
                rows.append(torch.tensor([*prompt, *answer]))
                completions.append(torch.tensor([0] * len(prompt) + [1] * len(answer)))
        longest = max(map(len, rows))
        if longest > self.max_length:
            raise ValueError(f"a pair is {longest} tokens long, above max_length {self.max_length}; use fewer frames")
        batch = {
            "input_ids": pad_sequence(rows, True, tokenizer.pad_token_id or 0),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], True),
            "completion_mask": pad_sequence(completions, True),
        }
        for key in ("pixel_values_videos", "video_num_frames"):
            if key in inputs:
                batch[key] = torch.from_numpy(np.concatenate([inputs[key]] * 2))
        return batch
