"""A fresh projector that starts in the decoder's space of words.

CLIP has seen pictures beside words before a projector meets it; the nano tower has not. Two things are missing, and
with them alignment of the projector alone often never finds out which of several objects a question means:

* scale: the tower's ``hidden_states[-2]`` is a residual stream with no norm behind it, and its tokens come out of a
  default projector about a hundred times as long as word embeddings, so that attention writes next to nothing
  into them;
* words: visual tokens begin by meaning nothing to the decoder. Here they are fitted to the sum of the
  embeddings of the words that an icon's caption has (object, colour, digit), and those of pictures without an icon
  to the mean embedding of filler words.

Shapes: N pictures, P patches of each, W the tower's width, T visual tokens a picture, D the decoder's width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

STEPS, BATCH, LEARNING_RATE = 400, 128, 3e-3


def calibrate_projector(model: Any, tokenizer: Any, *, seed: int, pictures: int = 2000) -> dict[str, float]:
    """Scale both layers of a fresh projector, and fit it to word embeddings.

    Args:
        model: a LongVA with an untrained projector of two linear layers.
        tokenizer: of the decoder's words.
        seed: of the pictures it is fitted on, training combinations and films only.
        pictures: icons, and as many distractors.

    Returns:
        Standard deviations of the tower's features and of visual tokens before and after scaling; the mean square
        error of the fit and that of the best constant.
    """
    import torch
    from torch import nn

    from longva_model.vision import pool_tokens, tower_features
    from vniah.training.nano.pictures import draw_distractors, draw_icons
    from vniah.training.nano.tower import pixel_values

    size = model.config.layout.tile_size
    icons = draw_icons(pictures, size, seed=seed)
    others_NHWC = draw_distractors(pictures, size, seed=seed, film_share=0.5)
    pixels_NHWC = np.concatenate([icons.pixels_NHWC, others_NHWC])
    projector = model.model.multi_modal_projector
    first, second = (module for module in projector.modules() if isinstance(module, nn.Linear))
    with torch.no_grad():
        features_NPW = torch.cat(
            [
                tower_features(model.model.vision_tower, torch.from_numpy(pixel_values(part)), model.config)
                for part in np.array_split(pixels_NHWC, max(1, len(pixels_NHWC) // 200))
            ]
        )
        before = projector(features_NPW).std()
        _divide(first, first(features_NPW).std())
        _divide(second, projector(features_NPW).std() / model.get_input_embeddings().weight.std())
        after = projector(features_NPW).std()
        targets_ND = torch.cat(
            [
                caption_embeddings(model, tokenizer, icons),
                filler_embedding(model, tokenizer).expand(len(others_NHWC), -1),
            ]
        )
    optimizer = torch.optim.Adam(projector.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    rng = np.random.default_rng((seed, 8))
    # As the model's images are: their tiles are pooled under UniRes and not under AnyRes.
    layout = model.config.layout
    pooling = layout.require_pooling() if layout.pools_tiles else None

    def error(chosen: Any) -> Any:
        tokens_NTD = projector(features_NPW[chosen])
        if pooling is not None:
            tokens_NTD = pool_tokens(tokens_NTD, *pooling)
        return (tokens_NTD - targets_ND[chosen, None]).square().mean()

    for _ in range(STEPS):
        optimizer.zero_grad()
        error(rng.integers(0, len(targets_ND), BATCH)).backward()
        optimizer.step()
        schedule.step()
    optimizer.zero_grad()
    with torch.no_grad():
        fit, constant = error(np.arange(len(targets_ND))), (targets_ND - targets_ND.mean(0)).square().mean()
    return {
        "features": float(features_NPW.std()),
        "before": float(before),
        "after": float(after),
        "fit": float(fit),
        "constant": float(constant),
    }


def caption_embeddings(model: Any, tokenizer: Any, icons: Any) -> Any:
    """(N, D): the sum of the embeddings of an icon's object, colour and digit."""
    import torch

    from vniah.needles.icons import COLOURS, DIGITS, OBJECTS

    labels_N3 = torch.from_numpy(icons.labels_N3)
    kinds = [_word_embeddings(model, tokenizer, words) for words in (OBJECTS, COLOURS, DIGITS)]
    return sum(kind[labels_N3[:, i]] for i, kind in enumerate(kinds))


def filler_embedding(model: Any, tokenizer: Any) -> Any:
    """(D,): the mean embedding of filler words."""
    from vniah.training.nano.vocabulary import word_list

    return _word_embeddings(model, tokenizer, word_list("filler")).mean(0)


def _word_embeddings(model: Any, tokenizer: Any, words: Iterable[Any]) -> Any:
    """The embedding of each word's first token: (words, D)."""
    import torch

    ids = [tokenizer(str(word), add_special_tokens=False).input_ids[0] for word in words]
    return model.get_input_embeddings()(torch.tensor(ids))


def _divide(layer: Any, by: Any) -> None:
    layer.weight /= by
    layer.bias /= by
