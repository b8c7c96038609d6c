"""RoPE angles in fp64, for decoders of transformers.

An angle is a position times a frequency. In fp32 the product of position 432,000 is off by up to 0.03 radians, which
bf16 would not hide (its rounding is 0.002); in fp64 it is exact. Cosine and sine are taken of it and returned as the
decoder has them.

Shapes: B prompts, T tokens, F frequencies, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

# How the decoders lay F angles out over a head.
_LAYOUTS: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
    lambda angles: torch.cat((angles, angles), dim=-1),
    lambda angles: torch.repeat_interleave(angles, 2, dim=-1),
    lambda angles: angles,
)
# Frequencies of the other types change with the length of the prompt.
_FIXED_TYPES = ("default", "linear", "llama3", "yarn")


class ExactRotary(nn.Module):
    """transformers' ``plain`` rotary embedding with angles in fp64, laid out from (B, T, F) to (B, T, D)."""

    def __init__(self, plain: Any, layout: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.plain = plain
        self._layout = layout

    @property
    def inv_freq(self) -> torch.Tensor:
        """Frequencies, (F,), in fp32."""
        return self.plain.inv_freq

    @torch.no_grad()
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine of (B, T) positions, (B, T, D) each, in the type of ``x``."""
        # Apple's GPUs have no fp64.
        device = torch.device("cpu") if x.device.type == "mps" else x.device
        angles_BTF = position_ids[..., None].to(device, torch.float64) * self.plain.inv_freq.to(device, torch.float64)
        scale = self.plain.attention_scaling
        cos, sin = ((self._layout(part) * scale).to(x.dtype) for part in (angles_BTF.cos(), angles_BTF.sin()))
        return cos.to(x.device), sin.to(x.device)


def make_exact(decoder: Any) -> bool:
    """Give ``decoder`` exact angles where its rotary embedding is of a known form; True where it now has them."""
    plain: Any = getattr(decoder, "rotary_emb", None)
    if isinstance(plain, ExactRotary):
        return True
    known = isinstance(getattr(plain, "inv_freq", None), torch.Tensor) and hasattr(plain, "attention_scaling")
    if not known or getattr(plain, "rope_type", None) not in _FIXED_TYPES or plain.inv_freq.is_meta:
        return False
    # Near position 0 both ways agree to rounding, which tells the layouts apart.
    probe = torch.zeros(1, 1, 1, device=plain.inv_freq.device)
    positions = torch.arange(8, device=probe.device)[None]
    try:
        wanted = plain(probe, positions)
    except TypeError:  # one that asks for more, such as a layer's type
        return False
    for layout in _LAYOUTS:
        exact = ExactRotary(plain, layout)
        found = exact(probe, positions)
        if all(a.shape == b.shape and torch.allclose(a, b, atol=1e-5) for a, b in zip(found, wanted, strict=True)):
            decoder.rotary_emb = exact
            return True
    return False
