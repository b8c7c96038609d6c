"""The tower stage: the nano vision tower, trained with labels that the icons are drawn from.

A tower of 0.4M parameters has no CLIP to start from, so it learns to name object, colour and digit, and
whether there is an icon at all, through heads that are thrown away. Said in the model card: the nano
tower has seen labels; no language has reached it.

Shape legend: N pictures, T visual tokens of each, W width, K classes. Features are ``hidden_states[-2]`` without
CLS, as the projector reads them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vniah.training.stages import NanoSize, TowerStage

DISTRACTOR_SHARE = 0.25
IGNORE = -100


def run(stage: TowerStage, folder: Path, *, seed: int, resolve: Any) -> dict[str, Any]:
    """Train the tower, write it to ``folder/model`` and report its accuracy on held-out icons."""
    import torch
    from transformers import set_seed

    from vniah.training.fit import fit, only_item
    from vniah.training.loading import save_model
    from vniah.training.nano.pictures import draw_distractors, draw_icons
    from vniah.training.stages import as_data
    from vniah.training.text import StepDataset

    set_seed(seed)
    size = stage.new.image_size
    icons = draw_icons(stage.pool_images, size, seed=seed)
    distractors_NHWC = draw_distractors(stage.pool_images // 4, size, seed=seed, film_share=stage.film_share)
    model = supervised_tower(stage.new, stage.feature_penalty)
    batches = TowerBatches(icons, distractors_NHWC, stage.train.batch_size, seed)
    report = fit(
        model,
        StepDataset(batches.batch, stage.train.steps),
        _one_item(stage),
        folder / "run",
        seed=seed,
        identity={"stage": as_data(stage), "seed": seed},
        collate=only_item,
        steps=stage.train.steps,
    )
    model.eval()
    test = draw_icons(1_000, size, seed=seed + 1, heldout=True)
    with torch.no_grad():
        logits = model(torch.from_numpy(pixel_values(test.pixels_NHWC)))
    for index, (name, scores) in enumerate(zip(("object", "colour", "digit"), logits, strict=False)):
        report[f"heldout_{name}"] = round(float((scores.argmax(-1).numpy() == test.labels_N3[:, index]).mean()), 4)
    save_model(model.vision_tower, None, folder / "model")
    return report


def _one_item(stage: TowerStage) -> Any:
    """The stage's settings with batch size 1: its dataset's items are whole batches."""
    import dataclasses

    return dataclasses.replace(stage.train, batch_size=1)


def pixel_values(pixels_NHWC: Any) -> Any:
    """uint8 (N, S, S, 3) to CLIP's fp32 (N, 3, S, S)."""
    from longva_model.pictures.preprocess import normalise

    return normalise(pixels_NHWC)


def tower_config(size: NanoSize) -> Any:
    """transformers' CLIPVisionConfig of the nano tower."""
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=size.vision_width,
        intermediate_size=size.vision_intermediate,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=size.vision_heads,
        image_size=size.image_size,
        patch_size=size.patch_size,
    )


def supervised_tower(size: NanoSize, feature_penalty: float) -> Any:
    """A CLIPVisionModel with heads for object, colour, digit and presence. Returns the loss, or the logits.

    Each of a frame's visual tokens has to tell all of it, wherever the icon stands, as a decoder would like it.
    """
    import torch
    import torch.nn.functional as F
    from torch import nn
    from transformers import CLIPVisionModel

    from longva_model.vision import pool_tokens
    from vniah.needles.icons import COLOURS, DIGITS, OBJECTS

    class SupervisedTower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision_tower = CLIPVisionModel(tower_config(size))
            width = size.vision_width
            self.mix = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU())
            self.heads = nn.ModuleList(nn.Linear(2 * width, n) for n in (len(OBJECTS), len(COLOURS), len(DIGITS), 2))

        def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
            hidden = self.vision_tower(pixel_values=pixel_values, output_hidden_states=True).hidden_states[-2]
            pooled_NTW = pool_tokens(self.mix(hidden[:, 1:]), 2, "average")
            logits_NTK = [head(pooled_NTW) for head in self.heads]
            if labels is None:
                return [z.mean(1) for z in logits_NTK]
            repeated_NT4 = labels[:, None].expand(-1, pooled_NTW.shape[1], -1)
            losses = [
                F.cross_entropy(z.flatten(0, 1), repeated_NT4[..., i].flatten(), ignore_index=IGNORE)
                for i, z in enumerate(logits_NTK)
            ]
            return {"loss": torch.stack(losses).sum() + feature_penalty * hidden.square().mean()}

    return SupervisedTower()


class TowerBatches:
    """Batches of icons and distractors by step, moved by up to two pixels."""

    def __init__(self, icons: Any, distractors_NHWC: Any, batch_size: int, seed: int) -> None:
        self.icons, self.distractors_NHWC = icons, distractors_NHWC
        self.batch_size, self.seed = batch_size, seed

    def batch(self, step: int) -> dict[str, Any]:
        """``pixel_values`` (N, 3, S, S) and ``labels`` (N, 4): object, colour, digit, presence."""
        rng = np.random.default_rng((self.seed, step, 3))
        without = int(self.batch_size * DISTRACTOR_SHARE)
        chosen = rng.integers(0, len(self.icons), self.batch_size - without)
        other = rng.integers(0, len(self.distractors_NHWC), without)
        pixels_NHWC = np.concatenate([self.icons.pixels_NHWC[chosen], self.distractors_NHWC[other]])
        labels_N4 = np.full((self.batch_size, 4), IGNORE, np.int64)
        labels_N4[: len(chosen), :3] = self.icons.labels_N3[chosen]
        labels_N4[:, 3] = np.arange(self.batch_size) < len(chosen)
        return {"pixel_values": pixel_values(shifted(pixels_NHWC, rng)), "labels": labels_N4}


def shifted(pixels_NHWC: Any, rng: np.random.Generator, reach: int = 2) -> Any:
    """Move each picture by up to ``reach`` pixels; its edge is repeated."""
    size = pixels_NHWC.shape[1]
    padded = np.pad(pixels_NHWC, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    out_NHWC = np.empty_like(pixels_NHWC)
    for index, (y, x) in enumerate(rng.integers(0, 2 * reach + 1, (len(pixels_NHWC), 2))):
        out_NHWC[index] = padded[index, y : y + size, x : x + size]
    return out_NHWC
