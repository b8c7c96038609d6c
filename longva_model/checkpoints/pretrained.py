"""What the bare model and the one with a head share: capabilities, initialisation, RoPE frequencies in fp32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from longva_model.config import LongVAConfig


class LongVAPreTrainedModel(PreTrainedModel):
    """What the bare model and the one with a head share."""

    config: LongVAConfig
    config_class = LongVAConfig
    base_model_prefix = "model"
    input_modalities = ("image", "video", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ("cache", "past_key_values")
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(newline := getattr(module, "image_newline", None), nn.Parameter):
            init.normal_(newline, mean=0.0, std=self.config.text_config.hidden_size**-0.5)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """Move or cast, but keep RoPE frequencies in fp32.

        Rounded to bf16 (``model.to(torch.bfloat16)``, or an engine that casts every buffer) a frequency is off
        by up to 2**-9, which at position 400,000 is many turns (reference section 6).
        """
        exact = {name: buffer for name, buffer in self.named_buffers() if name.endswith("inv_freq")}
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            parent, _, leaf = name.rpartition(".")
            module = self.get_submodule(parent)
            moved = getattr(module, leaf)
            if moved.dtype != buffer.dtype and not moved.is_meta and not buffer.is_meta:
                setattr(module, leaf, buffer.to(moved.device))
        return self
