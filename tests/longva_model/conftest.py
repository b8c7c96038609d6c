"""Tiny random LongVA models and a tokenizer of characters, offline: what the model's tests run on."""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

import pytest

TEXT_SIZES: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
# 28 pixels in patches of 7: 4 x 4 patches a tile, 2 x 2 tokens a frame.
VISION_SIZES: dict[str, Any] = {
    "image_size": 28,
    "patch_size": 7,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., Any]:
    """Makes a ``LongVAConfig``: ``tiny_config("llama", mm_patch_merge_type="spatial_unpad")``."""

    def make(text_type: str = "qwen2", text: dict[str, Any] | None = None, **options: Any) -> Any:
        from longva_model import LongVAConfig

        return LongVAConfig(
            text_config={"model_type": text_type, **TEXT_SIZES, **(text or {})}, vision_config=VISION_SIZES, **options
        )

    return make


@pytest.fixture(scope="session")
def tiny_model(tiny_config: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a random model in fp32 from the arguments of ``tiny_config``; the same weights each time."""

    def make(*args: Any, **options: Any) -> Any:
        import torch

        from longva_model import LongVAForConditionalGeneration

        torch.manual_seed(0)
        model = LongVAForConditionalGeneration(tiny_config(*args, **options)).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # larger than usual, so that every part shows in the output
                parameter.add_(torch.randn_like(parameter) * 0.1)
        return model

    return make


@pytest.fixture(scope="session")
def letter_tokenizer() -> Any:
    """One token a character, and the special tokens of Qwen."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [*string.ascii_letters, *string.digits, *string.punctuation, " ", "\n"]
    tokenizer = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )


@pytest.fixture(scope="session")
def tiny_processor(letter_tokenizer: Any) -> Callable[[Any], Any]:
    """Makes the processor of a configuration."""

    def make(config: Any) -> Any:
        from longva_model import LongVAProcessor

        return LongVAProcessor.from_config(config, letter_tokenizer)

    return make
