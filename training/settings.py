"""How a stage is optimised: the ``train`` section that all stages share. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """How a stage is optimised. Batch sizes are per device (under ``ring``: all devices share a sequence).

    Attributes:
        steps: optimizer steps; 0 means by ``epochs``.
        warmup: share of all steps below 1, else a number of steps.
        schedule: "cosine_min" falls to ``min_lr`` and not to 0.
        tower_lr: learning rate of the vision tower; ``None`` is ``lr``.
        projector_lr: learning rate of the projector, likewise.
        checkpointing: "full" recomputes each layer; "offload" also moves the layer inputs to the host.
        tile_tokens: run the decoder's MLPs and norms in tiles of so many tokens (see ``tiling``); 0 runs them whole.
        loss: engine of the head's cross entropy (see ``losses``).
        attention: transformers' attention implementation; "ring" shards every sequence over all ranks.
        sharding: "fsdp2" shards weights, gradients and optimizer over all ranks.
        offload: with fsdp2, keep what is sharded in host memory.
        deepspeed: path of a DeepSpeed config; instead of ``sharding``.
        threads: CPU threads of this stage, which sums depend on in their last bits; 0 leaves it to the machine.
    """

    lr: float
    steps: int = 0
    epochs: float = 0.0
    batch_size: int = 1
    accumulation: int = 1
    schedule: Literal["constant", "linear", "cosine", "cosine_min"] = "constant"
    min_lr: float = 0.0
    warmup: float = 0.0
    tower_lr: float | None = None
    projector_lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    precision: Literal["fp32", "bf16"] = "bf16"
    checkpointing: Literal["none", "full", "offload"] = "none"
    tile_tokens: int = 0
    loss: Literal["auto", "torch", "liger", "chunked"] = "auto"
    attention: str = "sdpa"
    compile: bool = False
    sharding: Literal["none", "fsdp2"] = "none"
    offload: bool = False
    deepspeed: str | None = None
    log_every: int = 10
    save_every: int = 0
    keep: int = 2
    report_to: tuple[str, ...] = ()
    workers: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        if self.steps < 0 or self.epochs < 0 or not (self.steps or self.epochs):
            raise ValueError(f"give steps or epochs above 0, got steps={self.steps}, epochs={self.epochs}")
        for name in ("lr", "min_lr", "tower_lr", "projector_lr"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"learning rates must not be negative, got {name}={getattr(self, name)}")
        for name in ("batch_size", "accumulation", "log_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.deepspeed and self.sharding != "none":
            raise ValueError("give either sharding or deepspeed, not both")
        if self.deepspeed and self.tile_tokens:
            raise ValueError("tile_tokens does not go with deepspeed, which takes weights away between tiles")
        if self.offload and self.sharding == "none":
            raise ValueError("offload needs sharding: fsdp2 (DeepSpeed offloads by its own config)")
        for name in ("save_every", "warmup", "workers", "threads", "tile_tokens", "weight_decay", "max_grad_norm"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.attention == "ring" and self.batch_size != 1:
            raise ValueError(
                f"attention: ring shares one sequence among all ranks, so batch_size is 1; got {self.batch_size}"
            )
