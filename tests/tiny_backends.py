"""Tiny random models behind the engine's face: what engine tests run on, with no checkpoint and no Hub.

Frames are 4 pixels wide and one linear map away from embeddings, so that thousands of prompts are cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage
from tiny_checkpoints import TEXT
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config

from longva_model.attention import register
from longva_model.backends.backend import Backend
from longva_model.prompts.prompting import Prompt
from vniah.contract.requests import Request
from vniah.contract.sources import HeldFrames
from vniah.prompts import PLAIN

VOCAB = 97
SIZES: dict[str, Any] = {**TEXT, "vocab_size": VOCAB}
CONFIGS = {
    "qwen2": lambda: Qwen2Config(**SIZES),
    "llama": lambda: LlamaConfig(**SIZES),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=None),
}


class LetterTokenizer:
    """One token a character."""

    eos_token_id = 0

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [1 + ord(letter) % (VOCAB - 1) for letter in text]}

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return "".join(chr(33 + int(token)) for token in ids)


class TinyBackend(Backend):
    """A random decoder of a kind, and frames of ``tokens_per_frame`` tokens."""

    template = PLAIN
    eos_ids = (0,)
    max_length = 4096
    train_tokens = 4096

    def __init__(self, kind: str = "qwen2", attn: str = "longva_blockwise", tokens_per_frame: int = 3) -> None:
        register()
        torch.manual_seed(0)
        self.name = self.fingerprint = f"tiny-{kind}"
        self.model = AutoModelForCausalLM.from_config(CONFIGS[kind](), attn_implementation=attn).eval()
        self.model.requires_grad_(False)
        for parameter in self.model.parameters():
            # Larger than transformers' initial weights, so that attention is sharp and argmaxes have gaps.
            if parameter.ndim == 2:
                parameter.mul_(6)
        self.decoder, self.lm_head = self.model.model, self.model.lm_head
        self.tokenizer = LetterTokenizer()
        self.tokens_per_frame = tokens_per_frame
        self.frame_map = torch.randn(4 * 4 * 3, tokens_per_frame * SIZES["hidden_size"])
        self.frames_encoded = 0

    def pixels(self, frames_NHWC: NDArray[np.uint8], preprocess: str) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(frames_NHWC[:, :4, :4]))

    def encode_pixels(self, pixels_NHWC: torch.Tensor) -> torch.Tensor:
        self.frames_encoded += len(pixels_NHWC)
        flat = (pixels_NHWC.float() / 255).flatten(1)
        return (flat @ self.frame_map).view(len(flat), self.tokens_per_frame, -1)

    def encode_image(self, image: PILImage.Image) -> torch.Tensor:
        return self.encode_pixels(torch.from_numpy(np.asarray(image.resize((4, 4)))[None].copy()))[0]

    def image_tokens(self, size: tuple[int, int]) -> int:
        return self.tokens_per_frame


class NoiseFrames(HeldFrames):
    """``count`` frames of noise, 4x4 pixels."""

    def __init__(self, count: int, seed: int = 0) -> None:
        noise_NHWC = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
        super().__init__(noise_NHWC, f"noise-{seed}-{count}")


def prompts(requests: Sequence[Request], media: Mapping[str, Any] | None = None) -> list[Prompt]:
    """Requests as the engine takes them."""
    return [Prompt(request=request, media=media or {}) for request in requests]


def needle_image(seed: int) -> PILImage.Image:
    return PILImage.fromarray(np.random.default_rng(1000 + seed).integers(0, 256, (4, 4, 3), dtype=np.uint8))


def watch_leaves(runner: Any, told: Callable[[int], object]) -> None:
    """Tell ``told`` the number of each leaf that ``runner`` computes, before it is kept."""
    run_window = runner._run_window

    def watched(prompts: Any, known: Any, done: Callable[[int, Any], None], **named: Any) -> None:
        def noted(index: int, result: Any) -> None:
            told(index)
            done(index, result)

        run_window(prompts, known, noted, **named)

    runner._run_window = watched
