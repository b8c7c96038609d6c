"""Pixel values out of 8-bit levels on their own device, so that bytes travel to it and not floats."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray


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
