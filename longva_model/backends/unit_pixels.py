"""What a processor makes of visual units, cut into one row a unit: what a tower is given.

A video-language model's processor turns frames into tensors of its own: patches with a grid, frames, masks of padding.
Here their first axis is the unit (a frame, a pair of frames, an image) and their names are the processor's, so that
nothing between the processor and the tower needs to know a family.

Shapes: N units, P patches a unit, C numbers a patch, Y and X a frame's height and width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, eq=False)
class UnitPixels:
    """N visual units of one fitted size.

    Attributes:
        tensors: by the processor's names, (N, ...) each, on the CPU. Such as ``pixel_values_videos`` (N, P, C) with
            ``video_grid_thw`` (N, 3), or ``pixel_values`` (N, 3, Y, X) with ``pixel_attention_mask`` (N, Y, X).

    Raises:
        ValueError: tensors of different numbers of units, or none.
    """

    tensors: Mapping[str, torch.Tensor]

    def __post_init__(self) -> None:
        counts = {name: len(tensor) for name, tensor in self.tensors.items()}
        if len(set(counts.values())) != 1:
            raise ValueError(f"tensors of as many units each are expected, got {counts}")

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, rows: slice) -> UnitPixels:
        return UnitPixels({name: tensor[rows] for name, tensor in self.tensors.items()})

    @classmethod
    def joined(cls, parts: Sequence[UnitPixels]) -> UnitPixels:
        """The units of all parts, in order."""
        return cls({name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors})
