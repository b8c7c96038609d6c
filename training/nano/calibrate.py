"""The nano model's calibrate stage: its visual tokens begin in the decoder's space of words.

CLIP has seen pictures beside words before a projector meets it; the nano tower has not. Three things are missing:

* scale (``scale_projector``): its tokens are about a hundred times as long as word embeddings;
* words: visual tokens begin by meaning nothing to the decoder, and alignment of the projector alone often never finds
  out which of several objects a question means;
* background: whatever is no icon has to say nothing. A tower that was never asked says object, colour or digit of a
  leaf or a face, a little, and over a thousand frames that drowns the needle.

So tower and projector are fitted together: the tokens of an icon to the sum of the embeddings of the words that its
caption has (object, colour, digit), those of a picture without one to the mean embedding of filler words. The decoder
is frozen. Said in the model card, and in the docs beside the figure that leaves it out.

Shape legend: N pictures, T visual tokens of each, P patches, W the tower's width, D the decoder's, V words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from longva_model.pictures.preprocess import normalise
from vniah.needles.icons import COLOURS, DIGITS, OBJECTS
from vniah.training.align import load_or_assemble, processor_for
from vniah.training.fit import StepDataset, fit
from vniah.training.load import save_model
from vniah.training.nano.pictures import barred, draw_distractors, draw_icons, shifted
from vniah.training.nano.vocabulary import word_list
from vniah.training.stages import CalibrateStage

BARRED_SHARE = 0.2  # of the pictures without an icon


def run(stage: CalibrateStage, folder: Path, *, seed: int, resolve: Callable[[str], str]) -> dict[str, Any]:
    """Fit tower and projector and write model, tokenizer and processor to ``folder/model``."""
    from transformers import set_seed

    set_seed(seed)
    model, tokenizer = load_or_assemble(stage, resolve, seed=seed)
    data, size = stage.data, model.config.layout.tile_size
    icons = draw_icons(data.pool_images, size, seed=seed + 30)
    others_NHWC = draw_distractors(data.pool_images, size, seed=seed + 30, film_share=data.film_share)

    def batch(step: int) -> dict[str, Any]:
        """``pixel_values`` (N, 3, S, S), and ``labels_N3``: object, colour and digit, or -1 where there is no icon."""
        rng = np.random.default_rng((seed, step, 8))
        half = stage.train.batch_size // 2
        chosen = rng.integers(0, len(icons.labels_N3), half)
        other = rng.integers(0, len(others_NHWC), stage.train.batch_size - half)
        shown_NHWC = barred(others_NHWC[other], rng, share=BARRED_SHARE)
        pixels_NHWC = np.concatenate([icons.pixels_NHWC[chosen], shown_NHWC])
        labels_N3 = np.concatenate([icons.labels_N3[chosen], np.full((len(other), 3), -1)])
        return {"pixel_values": normalise(shifted(pixels_NHWC, rng, reach=2)), "labels_N3": labels_N3}

    steps = stage.train.steps
    fitted = calibration(model, tokenizer, background=stage.background)
    report = fit(fitted, StepDataset(batch, steps), stage, folder / "run", seed=seed, steps=steps)
    save_model(model, processor_for(model, tokenizer, data.template), folder / "model")
    return report


def calibration(model: Any, tokenizer: Any, *, background: float) -> Any:
    """A module that holds ``model``, trains its tower and projector, and whose forward returns the "loss".

    It is the mean square error of the visual tokens, as a share of the variance of the words: of icons, plus
    ``background`` times that of pictures without one.
    """
    import torch
    from torch import nn

    table_VD, filler_D = word_embeddings(model, tokenizer)
    variance = table_VD.var(0).sum()

    class Calibration(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.longva = model
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name.startswith(("model.vision_tower.", "model.multi_modal_projector.")))

        def forward(self, pixel_values: torch.Tensor, labels_N3: torch.Tensor) -> dict[str, torch.Tensor]:
            tokens_NTD = tile_tokens(model, pixel_values)
            is_icon_N = labels_N3[:, 0] >= 0
            targets_ND = torch.where(is_icon_N[:, None], caption_embeddings(table_VD, labels_N3.clamp(min=0)), filler_D)
            error_N = (tokens_NTD - targets_ND[:, None]).square().sum(-1).mean(1) / variance
            return {"loss": error_N[is_icon_N].mean() + background * error_N[~is_icon_N].mean()}

    return Calibration()


def tile_tokens(model: Any, pixels_NCHW: Any) -> Any:
    """(N, T, D): the visual tokens of each picture as a tile of an image, pooled under UniRes and not under AnyRes."""
    from longva_model.backbone import pool_tokens, tower_features

    features_NPW = tower_features(model.model.vision_tower, pixels_NCHW, model.config)
    tokens_NTD = model.model.multi_modal_projector(features_NPW)
    layout = model.config.layout
    return pool_tokens(tokens_NTD, *layout.require_pooling()) if layout.pools_tiles else tokens_NTD


def word_embeddings(model: Any, tokenizer: Any) -> tuple[Any, Any]:
    """The embeddings of objects, colours and digits, in this order, (V, D); and the mean of filler words, (D,)."""
    import torch

    def embed(words: Iterable[Any]) -> Any:
        ids = [tokenizer(str(word), add_special_tokens=False).input_ids[0] for word in words]
        return model.get_input_embeddings().weight.detach()[torch.tensor(ids)]

    return embed([*OBJECTS, *COLOURS, *DIGITS]), embed(word_list("filler")).mean(0)


def caption_embeddings(table_VD: Any, labels_N3: Any) -> Any:
    """(N, D): the sum of the embeddings of each icon's object, colour and digit."""
    places = (0, len(OBJECTS), len(OBJECTS) + len(COLOURS))
    return sum(table_VD[labels_N3[:, kind] + place] for kind, place in enumerate(places))
