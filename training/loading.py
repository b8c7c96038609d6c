"""Loading tokenizers and writing models, in the ways every stage shares."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vniah.files import put_in_place, read_json
from vniah.training.stages import Train

GENERIC = ("TokenizersBackend", "PreTrainedTokenizerFast")


def load_tokenizer(source: str) -> Any:
    """The tokenizer of a folder or Hub id.

    A folder that declares a generic tokenizer gets it: for some decoders (qwen2 among them) transformers'
    AutoTokenizer overrides the declared class with the family's own, which reads a word list as byte pairs.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = Path(source) / "tokenizer_config.json"
    if path.is_file() and read_json(path).get("tokenizer_class") in GENERIC:
        return PreTrainedTokenizerFast.from_pretrained(source, trust_remote_code=False)
    return AutoTokenizer.from_pretrained(source, trust_remote_code=False)


def save_model(model: Any, processor: Any, folder: Path) -> None:
    """Write a whole model and its tokenizer (or processor) to a fresh folder, and move it into place."""
    with whole_folder(folder) as temporary:
        model.save_pretrained(temporary)
        if processor is not None:
            processor.save_pretrained(temporary)


def save_trained(trainer: Any, processor: Any, folder: Path) -> None:
    """``save_model`` of what a Trainer holds. Every rank calls it: sharded weights are gathered by all.

    No rank leaves before the folder is there, since the next stage reads it.
    """
    if not trainer.is_fsdp_enabled and not trainer.is_deepspeed_enabled:
        if trainer.is_world_process_zero():
            save_model(trainer.accelerator.unwrap_model(trainer.model), processor, folder)
    else:
        gathering = folder.with_name(f".{folder.name}.gathered")
        trainer.save_model(str(gathering))
        if trainer.is_world_process_zero():
            if processor is not None:
                processor.save_pretrained(gathering)
            (gathering / "training_args.bin").unlink(missing_ok=True)  # a pickle
            shutil.rmtree(folder, ignore_errors=True)
            put_in_place(gathering, folder)
    trainer.accelerator.wait_for_everyone()


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A fresh folder beside ``folder`` that takes its place when the block ends well."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    shutil.rmtree(folder, ignore_errors=True)
    put_in_place(temporary, folder)


def load_dtype(train: Train) -> Any:
    """The dtype to load trained weights in: fp32, which bf16 mixed precision keeps as master weights.

    DeepSpeed keeps its own fp32 copy and is handed bf16.
    """
    import torch

    return torch.bfloat16 if train.deepspeed and train.precision == "bf16" else torch.float32
