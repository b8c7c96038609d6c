"""Memory of the vision side of a training step: tower and projector, by the tiles that a batch holds.

An account of tensors, as in ``plan``. Sizes are bytes unless a name says otherwise; b is bytes of an activation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vniah.contract.cost import ModelShape
from vniah.training.stages import AlignStage, DpoStage, NanoSize, Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerShape:
    """A CLIP tower and the width it is projected to. ``layers`` are those that run."""

    layers: int
    width: int
    intermediate: int
    patches: int
    patch_size: int
    hidden: int
    params: int

    @property
    def projector_params(self) -> int:
        return self.hidden * (self.width + self.hidden + 2)


def clip_large(hidden: int) -> TowerShape:
    """CLIP ViT-L/14-336, all of the paper's models' tower; its last layer does not run."""
    return TowerShape(
        layers=23, width=1024, intermediate=4096, patches=576, patch_size=14, hidden=hidden, params=303_500_000
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerMemory:
    """Bytes of tower and projector: kept until their backward pass, and worked with one layer at a time."""

    kept: int
    layer: int


def tower_memory(
    shape: TowerShape, *, tiles: int, b: int, trained: bool, checkpointing: Literal["none", "full", "offload"]
) -> TowerMemory:
    """Memory of ``tiles`` tiles on one GPU, all in the tower at once.

    Args:
        shape: the tower.
        tiles: on one GPU.
        b: bytes of an activation.
        trained: whether the tower is; else nothing of it is kept.
        checkpointing: of its layers.
    """
    tokens, width, wide = tiles * (shape.patches + 1), shape.width, shape.intermediate
    # Both norms' inputs and outputs, q, k, v, what attention gives, its projection; fc1, its sigmoid and product.
    layer_kept = tokens * b * (9 * width + 3 * wide)
    flying = tokens * b * (2 * wide + 2 * width)
    inputs = tokens * width * b
    # Features in, the first linear, its GELU, the second.
    projector = tiles * shape.patches * b * (width + 3 * shape.hidden)
    pixels = 4 * 3 * tiles * shape.patches * shape.patch_size**2
    if not trained:
        return TowerMemory(kept=projector + pixels, layer=tokens * b * (4 * width + 2 * wide))
    if checkpointing == "none":
        return TowerMemory(kept=projector + pixels + shape.layers * layer_kept, layer=flying)
    layers = shape.layers if checkpointing == "full" else 2
    return TowerMemory(kept=projector + pixels + layers * inputs, layer=layer_kept + flying)


def vision_memory(stage: Stage, shape: ModelShape, tokens: int) -> TowerMemory | None:
    """What tower and projector take when all of ``tokens`` are visual; ``None`` for text."""
    if not isinstance(stage, AlignStage | DpoStage):
        return None
    tower = tower_of(shape)
    pooled = tower.patches // 4
    if isinstance(stage, DpoStage):
        tiles = min(-(-tokens // pooled), 2 * stage.num_frames * stage.train.batch_size)
    else:
        tiles = -(-tokens // (pooled if stage.data.merge == "unires" else tower.patches))
    return tower_memory(
        tower,
        tiles=tiles,
        b=2 if stage.train.precision == "bf16" else 4,
        trained=isinstance(stage, DpoStage) or "tower" in stage.parts,
        checkpointing=stage.train.checkpointing,
    )


def tower_of(shape: ModelShape) -> TowerShape:
    """The tower that goes with a decoder: the paper's CLIP, or the nano one in front of a small decoder."""
    if shape.hidden >= 1024:
        return clip_large(shape.hidden)
    nano = NanoSize()
    layer = 4 * nano.vision_width**2 + 2 * nano.vision_width * nano.vision_intermediate
    return TowerShape(
        layers=nano.vision_layers - 1,
        width=nano.vision_width,
        intermediate=nano.vision_intermediate,
        patches=(nano.image_size // nano.patch_size) ** 2,
        patch_size=nano.patch_size,
        hidden=shape.hidden,
        params=nano.vision_layers * layer,
    )
