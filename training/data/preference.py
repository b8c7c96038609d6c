"""Preference pairs on videos (LLaVA-Hound's format): read, checked, and collated for TRL's DPO.

A line is {"id", "video", "prompt", "chosen", "rejected"}; the video is a file or a folder of frames below the
videos folder. Shape legend: P pairs; a batch holds 2P sequences, chosen first, then rejected, of T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vniah.files import read_json_lines
from vniah.haystack.pictures import open_image
from vniah.prompts import QWEN_1_5, PromptTemplate
from vniah.training.data.labels import BadSampleError, sample_id
from vniah.training.data.processes import map_parts

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MARKS = ("<image>", "<video>")
PART_PAIRS = 250


def read_pairs(
    paths: Sequence[str],
    videos: str,
    max_bad_share: float,
    collator: PreferenceCollator | None = None,
    workers: int = 1,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All good pairs, and a manifest {"samples", "num_bad", "bad"}.

    Args:
        paths: JSON-lines files.
        videos: the folder that their videos are in.
        max_bad_share: of the pairs; the run stops above it.
        collator: given, every pair goes through it once: its frames are decoded and its length is measured.
        workers: processes that do so.

    Raises:
        ValueError: a file that is not JSON lines, more than ``max_bad_share`` of the pairs are bad, or none is good.
    """
    samples = [(sample_id(sample, number), sample) for path in paths for number, sample in _lines(path)]
    parts = [samples[start : start + PART_PAIRS] for start in range(0, len(samples), PART_PAIRS)]
    pairs: list[dict[str, Any]] = []
    bad: list[str] = []
    for good_part, bad_part in map_parts(_Look(videos, collator), parts, workers):
        pairs += good_part
        bad += bad_part
    if len(bad) > max_bad_share * len(samples):
        raise ValueError(
            f"{len(bad)} of {len(samples)} pairs are bad, more than the share of {max_bad_share:g} allowed: "
            + "; ".join(bad[:3])
        )
    if not pairs:
        raise ValueError(f"no pairs in {', '.join(paths)}")
    return pairs, {"samples": len(pairs), "num_bad": len(bad), "bad": bad}


def _lines(path: str) -> Iterator[tuple[int, Any]]:
    for line, sample in read_json_lines(path):
        yield line - 1, sample


@dataclass(frozen=True)
class _Look:
    """The good pairs of a part, and why the others are bad."""

    videos: str
    collator: PreferenceCollator | None

    def __call__(self, part: list[tuple[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
        pairs: list[dict[str, Any]] = []
        bad: list[str] = []
        for name, sample in part:
            try:
                pair = check_pair(sample, self.videos)
                if self.collator is not None:
                    self.collator([pair])
            except (OSError, SyntaxError, ValueError) as error:
                bad.append(f"{name}: {error}")
            else:
                pairs.append(pair)
        return pairs, bad


def check_pair(sample: Any, videos: str) -> dict[str, Any]:
    """One pair with its video's path.

    Raises:
        BadSampleError: a field that is missing or empty, equal answers, or no video.
    """
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
    if found is None or (found.is_dir() and not frame_files(found)):
        raise BadSampleError(f"no video {texts['video']!r}")
    prompt = texts["prompt"]
    for mark in MARKS:
        prompt = prompt.replace(mark, "")
    return {
        "images": [str(found)],
        "prompt": prompt.strip("\n"),
        "chosen": texts["chosen"],
        "rejected": texts["rejected"],
    }


def frame_files(folder: Path) -> list[Path]:
    """The frames of a video that is a folder, in name order."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in FRAME_SUFFIXES)


class PreferenceCollator:
    """Pairs to what TRL's DPOTrainer takes: ids, masks, and the frames of each video twice.

    Args:
        processor: a LongVAProcessor.
        num_frames: frames of each video, evenly spread (reference section 5: linspace).
        max_length: longest sequence in tokens; nothing is cut, a longer one is an error.
        template: what stands around the prompt.
    """

    def __init__(
        self, processor: Any, *, num_frames: int, max_length: int, template: PromptTemplate = QWEN_1_5
    ) -> None:
        self.processor, self.num_frames, self.max_length, self.template = processor, num_frames, max_length, template

    def __call__(self, pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """``input_ids``, ``attention_mask`` and ``completion_mask`` (2P, T), ``pixel_values_videos`` (2P, F, 3, S, S).

        Raises:
            ValueError: a pair longer than ``max_length``.
        """
        import torch

        tokenizer = self.processor.tokenizer
        texts = [f"{self.template.pre}<video>\n{pair['prompt']}{self.template.post}" for pair in pairs]
        inputs = self.processor(text=texts, videos=[self.frames(pair["images"][0]) for pair in pairs], padding=False)
        rows, completions = [], []
        for key in ("chosen", "rejected"):
            for pair, prompt in zip(pairs, inputs["input_ids"], strict=True):
                answer = tokenizer(pair[key], add_special_tokens=False).input_ids
                answer += tokenizer(self.template.between.split("\n")[0] + "\n", add_special_tokens=False).input_ids
                rows.append([*prompt, *answer])
                completions.append([0] * len(prompt) + [1] * len(answer))
        longest = max(len(row) for row in rows)
        if longest > self.max_length:
            raise ValueError(f"a pair is {longest} tokens long, above max_length {self.max_length}; use fewer frames")
        pad = tokenizer.pad_token_id or 0

        def filled(values: list[list[int]], filler: int) -> Any:
            return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in values])

        batch = {
            "input_ids": filled(rows, pad),
            "attention_mask": filled([[1] * len(row) for row in rows], 0),
            "completion_mask": filled(completions, 0),
            "pixel_values_videos": torch.from_numpy(np.concatenate([inputs["pixel_values_videos"]] * 2)),
        }
        if "video_num_frames" in inputs:
            batch["video_num_frames"] = torch.from_numpy(np.concatenate([inputs["video_num_frames"]] * 2))
        return batch

    def frames(self, path: str) -> Any:
        """``num_frames`` frames of a video file or of a folder of frames."""
        from longva_model.pictures.opening import load_frames

        if not Path(path).is_dir():
            return load_frames(path, self.num_frames)
        files = frame_files(Path(path))
        chosen = np.unique(np.linspace(0, len(files) - 1, self.num_frames, dtype=int))
        images = []
        for index in chosen:
            images.append(open_image(files[int(index)]))
        return images
