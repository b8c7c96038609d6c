"""Tiny random checkpoints on disk, in real layouts: what tests of loading, adapter and commands run on.

One token a character, random weights larger than usual so that every part of a prompt shows in the answer.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

TEXT: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
# 28 pixels in patches of 7: 4 x 4 patches a tile, 2 x 2 tokens a frame.
VISION: dict[str, Any] = {
    "image_size": 28,
    "patch_size": 7,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
# The end of an answer in the tokenizers below.
EOS = "<|im_end|>"


def letters() -> Any:
    """A tokenizer of characters with Qwen's special tokens; what it does not know is a space."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = [*string.ascii_letters, *string.digits, *string.punctuation, " ", "\n"]
    tokenizer = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(known)}, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
    )


def _random(build: Callable[[], Any], seed: int) -> Any:
    """The model that ``build`` makes, the same each time."""
    import torch

    torch.manual_seed(seed)
    model = build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def write_longva(
    folder: Path, text_type: str = "qwen2", *, seed: int = 0, text: dict[str, Any] | None = None, **options: Any
) -> Path:
    """LongVA in our layout; ``options`` are of ``LongVAConfig``, ``text`` of its decoder."""
    from longva_model import LongVAConfig, LongVAForConditionalGeneration, LongVAProcessor

    config = LongVAConfig(
        text_config={"model_type": text_type, **TEXT, **(text or {})}, vision_config=VISION, **options
    )
    tokenizer = letters()
    model = _random(lambda: LongVAForConditionalGeneration(config), seed)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    LongVAProcessor.from_config(config, tokenizer).save_pretrained(folder)
    return folder


def write_llava_next_video(folder: Path, text_type: str = "mistral", *, seed: int = 0) -> Path:
    """LLaVA-NeXT-Video as transformers saves it."""
    from transformers import CLIPVisionConfig, LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

    tile = VISION["image_size"]
    config = LlavaNextVideoConfig(
        text_config={"model_type": text_type, **TEXT, "vocab_size": TEXT["vocab_size"] + 2},
        vision_config=CLIPVisionConfig(**VISION),
        image_grid_pinpoints=[[tile, 2 * tile], [2 * tile, tile], [2 * tile, 2 * tile], [3 * tile, tile]],
        image_token_index=TEXT["vocab_size"],
        video_token_index=TEXT["vocab_size"] + 1,
    )
    tokenizer = letters()
    model = _random(lambda: LlavaNextVideoForConditionalGeneration(config), seed)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_text_model(folder: Path, text_type: str = "qwen2", *, seed: int = 0) -> Path:
    """A text-only causal model."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = letters()
    model = _random(lambda: AutoModelForCausalLM.from_config(AutoConfig.for_model(text_type, **TEXT)), seed)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
