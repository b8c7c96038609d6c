"""Tiny random LongVA models and a tokenizer of characters, offline: what the model's tests run on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tiny_checkpoints import TEXT, VISION, letters

TEXT_SIZES: dict[str, Any] = {**TEXT, "vocab_size": 120, "max_position_embeddings": 2048}


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., Any]:
    """Makes a ``LongVAConfig``: ``tiny_config("llama", mm_patch_merge_type="spatial_unpad")``."""

    def make(text_type: str = "qwen2", text: dict[str, Any] | None = None, **options: Any) -> Any:
        from longva_model import LongVAConfig

        return LongVAConfig(
            text_config={"model_type": text_type, **TEXT_SIZES, **(text or {})}, vision_config=VISION, **options
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
    return letters()


@pytest.fixture(scope="session")
def tiny_processor(letter_tokenizer: Any) -> Callable[[Any], Any]:
    """Makes the processor of a configuration."""

    def make(config: Any) -> Any:
        from longva_model import LongVAProcessor

        return LongVAProcessor.from_config(config, letter_tokenizer)

    return make


@pytest.fixture(scope="module")
def module_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A VNIAH_CACHE of the module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VNIAH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
