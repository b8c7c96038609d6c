"""Runs ``vniah`` with FSDP2 over gloo: accelerate shards on accelerators alone, and here CPU processes pass for them.

``torchrun ... fsdp_on_gloo.py train RECIPE``, or by accelerate launch. Prints the modules that were sharded.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import accelerate.state
import torch
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer

plain_init, plain_step = accelerate.state.PartialState.__init__, Trainer.training_step
told: list[bool] = []


def init(self: Any, *args: Any, **kwargs: Any) -> None:
    plain_init(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU


def training_step(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
    if not told and self.is_world_process_zero():
        told.append(True)
        names = Counter(type(m).__name__ for m in model.modules() if isinstance(m, FSDPModule))
        print("sharded:", dict(sorted(names.items())), flush=True)
    return plain_step(self, model, *args, **kwargs)


def pass_for_accelerators() -> None:
    accelerate.state.PartialState.__init__ = init
    Trainer.training_step = training_step
    torch.Tensor.pin_memory = lambda self, *_, **__: self  # nothing to pin for


if __name__ == "__main__":
    pass_for_accelerators()
    from vniah.cli import main

    sys.argv[0] = "vniah"
    main()
