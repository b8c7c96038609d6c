"""From pixel values to visual tokens: tower, projector, pool, token order.

The tower stops at the hidden state that is used: the layers after it, the final norm and the pooled output are
never computed.

Shapes: N tiles or frames, S their edge in pixels, P patches a tile, T tokens, V the tower's width, D the decoder's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers.activations import ACT2FN

from longva_model.config import LongVAConfig
from longva_model.pictures.layout import NEWLINE, Size, VisualLayout, anyres_order


class LongVAProjector(nn.Module):
    """Linear, activation, linear: the tower's width to the decoder's."""

    def __init__(self, config: LongVAConfig) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(config.vision_config.hidden_size, config.text_config.hidden_size)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(config.text_config.hidden_size, config.text_config.hidden_size)

    def forward(self, features_NPV: torch.Tensor) -> torch.Tensor:
        return self.linear_2(self.act(self.linear_1(features_NPV)))


def tower_features(tower: Any, pixels_NCHW: torch.Tensor, config: LongVAConfig) -> torch.Tensor:
    """Hidden state ``config.vision_feature_layer`` of a ``CLIPVisionModel``, (N, P, V), without the class token."""
    layers = tower.encoder.layers
    # The list of hidden states starts with the embeddings, so it is one longer than the list of layers.
    wanted = config.vision_feature_layer % (len(layers) + 1)
    hidden = tower.pre_layrnorm(tower.embeddings(pixels_NCHW))
    for layer in layers[:wanted]:
        hidden = layer(hidden, None)
    return hidden[:, 1:]


def pool_tokens(features_NPD: torch.Tensor, stride: int, mode: str) -> torch.Tensor:
    """Pool each square map of patches: (N, side**2, D) to (N, (side // stride)**2, D), row-major."""
    count, patches, dim = features_NPD.shape
    side = round(patches**0.5)
    maps_NDYX = features_NPD.reshape(count, side, side, dim).permute(0, 3, 1, 2)
    pool = nn.functional.avg_pool2d if mode == "average" else nn.functional.max_pool2d
    return pool(maps_NDYX, stride).flatten(2).transpose(1, 2)


def levels_to_pixels(frames_NHWC: torch.Tensor, table: NDArray[np.float32]) -> torch.Tensor:
    """``preprocess.normalise`` on the frames' device: bytes travel instead of floats, the values are the same.

    Args:
        frames_NHWC: uint8 levels, (N, S, S, 3).
        table: ``preprocess.level_table(mean, std)``, (3, 256).

    Returns:
        float32 pixel values, (N, 3, S, S).
    """
    device = frames_NHWC.device
    # One look-up for all channels: the second channel's levels are 256 to 511, the third's 512 to 767.
    rows_NCHW = frames_NHWC.permute(0, 3, 1, 2).to(torch.int32, memory_format=torch.contiguous_format)
    rows_NCHW += torch.arange(0, 768, 256, dtype=torch.int32, device=device)[:, None, None]
    return torch.from_numpy(table).to(device).flatten().index_select(0, rows_NCHW.flatten()).view(rows_NCHW.shape)


def merge_tiles(
    tiles_NPD: torch.Tensor, image_wh: Size, layout: VisualLayout, newline_D: torch.Tensor | None
) -> torch.Tensor:
    """One image's visual tokens in the decoder's order, (T, D).

    Args:
        tiles_NPD: tiles as ``layout.tile_sources`` lists them, pooled already where ``layout.pools_tiles``.
        image_wh: the image's size in pixels.
        newline_D: the learnt newline of AnyRes, None elsewhere.
    """
    flat_TD = tiles_NPD.flatten(0, 1)
    if newline_D is None:
        return flat_TD
    with_newline = torch.cat([flat_TD, newline_D[None].to(flat_TD)])
    grid = layout.grid(image_wh)
    if grid is None:
        return with_newline
    assert NEWLINE == -1  # so that it picks the last row
    return with_newline[torch.from_numpy(anyres_order(grid, layout.patches_per_side)).to(flat_TD.device)]
