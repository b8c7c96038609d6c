"""Models that go into a stage and come out of it: weights on one rank's host, and gathered to it at the end.

With ``sharding: fsdp2`` the first rank alone reads weights. The others build the model without any, and are sent
their shards when the Trainer shards it: the hosts hold the model once, not once a rank.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from vniah.files import put_in_place, read_json
from vniah.training.processes import rank
from vniah.training.stages import Train

GENERIC = ("TokenizersBackend", "PreTrainedTokenizerFast")


def has_weights(train: Train) -> bool:
    """Whether this rank reads weights, and does not wait for its shards of them."""
    return rank() == 0 or train.sharding == "none"


def load(kind: Any, source: str, train: Train, *, dtype: Any = None, config: Any = None) -> Any:
    """A model of a class (or Auto class) of transformers, in fp32 unless ``dtype`` says so.

    fp32 is what bf16 mixed precision keeps as master weights.
    """
    import torch
    from transformers import AutoConfig

    dtype = dtype or torch.float32
    if has_weights(train):
        return kind.from_pretrained(source, config=config, dtype=dtype, trust_remote_code=False)
    config = config or AutoConfig.from_pretrained(source, trust_remote_code=False)
    return without_weights(getattr(kind, "from_config", kind), config, dtype)


def without_weights(kind: Any, config: Any, dtype: Any) -> Any:
    """A model whose parameters hold nothing yet. Its buffers are real: nobody sends those.

    Memory that is never written to takes none; and accelerate tells an optimizer's parameters by their addresses, which
    those on the meta device do not have.
    """
    import torch

    from longva_model.modeling import empty_model

    with empty_model(dtype):
        model = kind(config)
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = torch.nn.Parameter(torch.empty_like(value, device="cpu"))
    model.tie_weights()
    return model


def assemble(config: Any, language: Any, vision: Any) -> Any:
    """A LongVA that has the very tensors of a decoder and a tower, and a fresh projector."""
    import torch

    from longva_model import LongVAForConditionalGeneration
    from longva_model.backbone import LongVAProjector

    model: Any = without_weights(LongVAForConditionalGeneration, config, torch.float32)
    base = model.model
    base.language_model.load_state_dict(language.model.state_dict(), assign=True)
    model.lm_head.load_state_dict(language.lm_head.state_dict(), assign=True)
    base.vision_tower.load_state_dict(vision.state_dict(), assign=True)
    model.tie_weights()
    base.multi_modal_projector = LongVAProjector(config)
    if base.image_newline is not None:
        base.image_newline = torch.nn.Parameter(torch.empty(config.text_config.hidden_size))
    for module in (base, *base.multi_modal_projector.modules()):
        model._init_weights(module)
    model.generation_config = language.generation_config
    return model


def load_tokenizer(source: str) -> Any:
    """The tokenizer of a folder or Hub id.

    A folder that declares a generic tokenizer gets it: for some decoders (qwen2 among them) transformers'
    AutoTokenizer overrides the declared class with the family's own, which reads a word list as byte pairs.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = Path(source) / "tokenizer_config.json"
    generic = path.is_file() and read_json(path).get("tokenizer_class") in GENERIC
    return (PreTrainedTokenizerFast if generic else AutoTokenizer).from_pretrained(source, trust_remote_code=False)


def save_model(model: Any, processor: Any, folder: Path) -> None:
    """Write a whole model and its tokenizer (or processor) to a fresh folder, and move it into place."""
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    model.save_pretrained(draft)
    _finish(draft, processor, folder)


def save_trained(trainer: Any, processor: Any, folder: Path, train: Train) -> None:
    """``save_model`` of what a Trainer holds, in the precision it was trained in. Every rank calls it.

    Sharded weights are gathered by all, one tensor at a time, to the first rank's host. No rank leaves before the
    folder is there, since the next stage reads it.
    """
    import torch
    from torch.distributed.tensor import DTensor

    dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    weights = {}
    for name, part in model.state_dict().items():
        value: Any = part.to(dtype) if part.is_floating_point() else part
        if isinstance(value, DTensor):
            on_device: Any = value.to(value.device_mesh.device_type)
            value = on_device.full_tensor()
        if trainer.is_world_process_zero():
            weights[name] = value.cpu()
    if trainer.is_world_process_zero():
        draft = folder.with_name(f".{folder.name}.gathered")
        shutil.rmtree(draft, ignore_errors=True)
        model.save_pretrained(draft, state_dict=weights)
        _say_dtype(draft / "config.json", str(dtype).removeprefix("torch."))
        _finish(draft, processor, folder)
    trainer.accelerator.wait_for_everyone()


def _say_dtype(path: Path, dtype: str) -> None:
    """The dtype in a saved config: transformers writes that of the model in memory, not that of the tensors."""
    config = read_json(path)
    for part in (config, config.get("text_config"), config.get("vision_config")):
        if isinstance(part, dict) and "dtype" in part:
            part["dtype"] = dtype
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _finish(draft: Path, processor: Any, folder: Path) -> None:
    if processor is not None:
        processor.save_pretrained(draft)
    shutil.rmtree(folder, ignore_errors=True)
    put_in_place(draft, folder)
