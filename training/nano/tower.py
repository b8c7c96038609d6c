"""The nano model's tower stage, and the scale of the projector behind the tower.

A tower of 0.4M parameters has no CLIP to start from, so it learns to name object, colour and digit, and
whether there is an icon at all, through heads that are thrown away. Said in the model card: the nano
tower has seen labels; no language has reached it.

Shape legend: N pictures, P patches and T visual tokens of each, W the tower's width, K classes.
Features are ``hidden_states[-2]`` without CLS, as the projector reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from longva_model.pictures.preprocess import normalise
from vniah.needles.icons import COLOURS, DIGITS, OBJECTS
from vniah.training.fit import StepDataset, fit
from vniah.training.load import save_model
from vniah.training.nano.pictures import draw_distractors, draw_icons, shifted
from vniah.training.stages import IGNORE, NanoSize, TowerStage

DISTRACTOR_SHARE = 0.25
SCALE_PICTURES = 400


def run(stage: TowerStage, folder: Path, *, seed: int, resolve: Callable[[str], str]) -> dict[str, Any]:
    """Train the tower, write it to ``folder/model`` and report its accuracy on held-out icons."""
    import torch
    from transformers import set_seed

    set_seed(seed)
    size = stage.new.image_size
    icons = draw_icons(stage.pool_images, size, seed=seed)
    distractors_NHWC = draw_distractors(stage.pool_images // 4, size, seed=seed, film_share=stage.film_share)
    model = supervised_tower(stage.new, stage.feature_penalty)

    def batch(step: int) -> dict[str, Any]:
        """``pixel_values`` (N, 3, S, S) and ``labels`` (N, 4): object, colour, digit, presence of an icon."""
        rng = np.random.default_rng((seed, step, 3))
        without = int(stage.train.batch_size * DISTRACTOR_SHARE)
        chosen = rng.integers(0, len(icons.labels_N3), stage.train.batch_size - without)
        other = rng.integers(0, len(distractors_NHWC), without)
        pixels_NHWC = np.concatenate([icons.pixels_NHWC[chosen], distractors_NHWC[other]])
        labels_N4 = np.full((len(pixels_NHWC), 4), IGNORE, np.int64)
        labels_N4[: len(chosen), :3] = icons.labels_N3[chosen]
        labels_N4[:, 3] = np.arange(len(labels_N4)) < len(chosen)
        return {"pixel_values": normalise(shifted(pixels_NHWC, rng, reach=2)), "labels": labels_N4}

    steps = stage.train.steps
    report = fit(model, StepDataset(batch, steps), stage, folder / "run", seed=seed, steps=steps)
    model.eval()
    test = draw_icons(1_000, size, seed=seed + 1, heldout=True)
    with torch.no_grad():
        logits = model(torch.from_numpy(normalise(test.pixels_NHWC)))
    for index, name in enumerate(("object", "colour", "digit")):
        right_N = logits[index].argmax(-1).numpy() == test.labels_N3[:, index]
        report[f"heldout_{name}"] = round(float(right_N.mean()), 4)
    save_model(model.vision_tower, None, folder / "model")
    return report


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

    from longva_model.backbone import pool_tokens

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


def scale_projector(model: Any, *, seed: int) -> None:
    """Scale an untrained projector, so that its tokens are as long as the decoder's words.

    The tower's features are a residual stream with no norm behind it, and come out of a default projector about a
    hundred times as long, so that attention writes next to nothing into them.
    """
    import torch
    from torch import nn

    from longva_model.backbone import tower_features

    size = model.config.layout.tile_size
    projector = model.model.multi_modal_projector
    first, second = (module for module in projector.modules() if isinstance(module, nn.Linear))
    pixels_NHWC = np.concatenate(
        [
            draw_icons(SCALE_PICTURES, size, seed=seed).pixels_NHWC,
            draw_distractors(SCALE_PICTURES, size, seed=seed, film_share=0.5),
        ]
    )
    with torch.no_grad():
        features_NPW = tower_features(model.model.vision_tower, torch.from_numpy(normalise(pixels_NHWC)), model.config)
        _divide(first, first(features_NPW).std())
        _divide(second, projector(features_NPW).std() / model.get_input_embeddings().weight.std())


def _divide(layer: Any, by: Any) -> None:
    layer.weight /= by
    layer.bias /= by
