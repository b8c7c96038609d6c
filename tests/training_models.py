"""Small untrained models, and recipes, for the tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from vniah.training.stages import LengthPhase, NanoSize, TextData, TextStage, Train


def tiny_qwen2(layers: int = 1, *, vocabulary: int = 20) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=24, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


def nano_parts(layers: int = 1, *, length: int = 512) -> tuple[Any, Any, Any]:
    """A nano decoder, its tokenizer, and the config of a nano tower."""
    from vniah.training.nano.tower import tower_config
    from vniah.training.nano.vocabulary import build_tokenizer
    from vniah.training.text import new_decoder

    torch.manual_seed(0)
    size = NanoSize(hidden_size=32, num_layers=layers, intermediate_size=48, vision_width=32, vision_layers=2)
    data = TextData(phases=(LengthPhase(start=0, length=64, batch=1),))
    stage = TextStage(name="t", new=size, train=Train(lr=1e-3, steps=1), data=data, sequence_length=length)
    tokenizer = build_tokenizer()
    return new_decoder(stage, tokenizer), tokenizer, tower_config(size)


def nano_folder(folder: Path) -> Path:
    """A nano LongVA with its processor."""
    from longva_model import LongVAConfig, LongVAForConditionalGeneration
    from vniah.training.align import processor_for
    from vniah.training.load import save_model

    decoder, tokenizer, tower = nano_parts()
    model = LongVAForConditionalGeneration(LongVAConfig(text_config=decoder.config, vision_config=tower))
    save_model(model, processor_for(model, tokenizer, "nano"), folder)
    return folder


def pair(**changes: Any) -> dict[str, Any]:
    """A line of preference data."""
    return {"id": "p", "video": "v1", "prompt": "<video>\nWhat?", "chosen": "red", "rejected": "blue", **changes}


def write_recipe(folder: Path, name: str, stages: list[dict[str, Any]], **more: Any) -> Path:
    """A recipe file in ``folder`` that writes to ``folder/name``."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, "output": str(folder / name), "stages": stages, **more}))
    return path
