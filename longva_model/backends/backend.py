"""What the engine needs of a model, and the models that give it.

A backend turns strings, frames and images into embeddings, embeddings into hidden states, and hidden
states into logits. It is the one place where model classes differ; the engine knows none of them.

Shapes: N frames, T tokens, D hidden size, V vocabulary, t visual tokens a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage

from longva_model.engine.head import widened
from vniah.contract.cost import ModelShape
from vniah.prompts import PromptTemplate


class Backend(Protocol):
    """The face of a model towards the engine."""

    name: str
    fingerprint: str
    template: PromptTemplate
    tokenizer: Any
    model: Any
    decoder: Any
    eos_ids: tuple[int, ...]
    max_length: int
    train_tokens: int | None
    tokens_per_frame: int
    # Tokens of the longest prompt that may be computed in parts, and of the longest at all; None = any.
    chunked_until: int | None
    positions_until: int | None

    @property
    def frames_fingerprint(self) -> str:
        """Of all that decides a frame's visual tokens: not of the decoder's RoPE."""
        ...

    @property
    def generation_defaults(self) -> dict[str, Any]:
        """What the checkpoint's generation config asks for where a task leaves it open."""
        ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def shape(self) -> ModelShape: ...

    def token_ids(self, text: str) -> list[int]:
        """Tokenise alone, no special tokens added."""
        ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def embed_ids(self, ids: Sequence[int]) -> torch.Tensor:
        """(T, D)."""
        ...

    def pixels(self, frames_NHWC: NDArray[np.uint8], preprocess: str) -> torch.Tensor:
        """Fit frames to the tower on the CPU, (N, S, S, 3) uint8; ``preprocess`` is a mode of ``fit_frames``."""
        ...

    def encode_pixels(self, pixels_NHWC: torch.Tensor) -> torch.Tensor:
        """(N, t, D)."""
        ...

    def encode_image(self, image: PILImage.Image) -> torch.Tensor:
        """One image as the model sees an image (UniRes or AnyRes), (T, D)."""
        ...

    def image_tokens(self, size: tuple[int, int]) -> int:
        """Visual tokens of an image of (width, height)."""
        ...

    def video_suffix(self) -> torch.Tensor | None:
        """What follows an ordinary video's last frame, (1, D), if anything."""
        ...

    def logits(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        """(T, V), float32, not rounded to a shorter type on the way."""
        ...


class TextMixin:
    """The part that every Hugging Face causal model shares: tokenizer, embeddings, decoder and head."""

    tokenizer: Any
    model: Any
    decoder: Any
    lm_head: Any
    fingerprint: str
    tokens_per_frame: int
    chunked_until: int | None = None
    positions_until: int | None = None

    @property
    def frames_fingerprint(self) -> str:
        return self.fingerprint

    @property
    def generation_defaults(self) -> dict[str, Any]:
        config = getattr(self.model, "generation_config", None)
        names = ("temperature", "top_p", "top_k", "repetition_penalty", "min_new_tokens")
        found = {name: getattr(config, name, None) for name in names}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.decoder.parameters()).dtype

    @property
    def shape(self) -> ModelShape:
        config = self.decoder.config
        heads = config.num_attention_heads
        return ModelShape(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            intermediate=_intermediate(config),
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            vocab=config.vocab_size,
            tokens_per_frame=self.tokens_per_frame,
            kv_bytes=self.dtype.itemsize,
        )

    def token_ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def embed_ids(self, ids: Sequence[int]) -> torch.Tensor:
        tensor = torch.tensor(list(ids), dtype=torch.long, device=self.device)
        embedded: torch.Tensor = self.decoder.get_input_embeddings()(tensor)
        return embedded

    def logits(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        logits_TV: torch.Tensor = widened(self.lm_head)(hidden_TD)
        return logits_TV.float()


def _intermediate(config: Any) -> int:
    """Width of an MLP; kinds of models older than a common name for it have names of their own."""
    names = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "moe_intermediate_size")
    widths = (getattr(config, name, None) for name in names)
    return next((width for width in widths if isinstance(width, int) and width > 0), 4 * int(config.hidden_size))


def eos_token_ids(tokenizer: Any, generation_config: Any) -> tuple[int, ...]:
    """Every id that ends a generation: the generation config's and the tokenizer's."""
    found: set[int] = set()
    for value in (getattr(generation_config, "eos_token_id", None), getattr(tokenizer, "eos_token_id", None)):
        if isinstance(value, int):
            found.add(value)
        elif value is not None:
            found.update(int(item) for item in value)
    return tuple(sorted(found))
