"""From hidden states to logits by a model's own head, in fp32.

What stands between hidden states and logits differs (Cohere and Granite scale, Gemma 2 caps), so a model's own
forward makes them: it is called with a stand-in for its decoder, which hands the given hidden states on. Only the
linear map itself is made anew: in fp32, where the model's would round the logits to bf16 before anyone compares them.

Shapes: T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

# Of a head's weights, so many are held in fp32 at once (256 MiB).
_WIDE_NUMBERS = 2**26


class WideLinear(nn.Module):
    """A linear map whose products and sums are fp32, whatever the type of its weights."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        """(..., T, D) to (..., T, V); fp32 (fp64 for fp64 weights)."""
        weight_VD, bias_V = self.linear.weight, self.linear.bias
        if weight_VD.dtype not in (torch.bfloat16, torch.float16):
            logits_TV: torch.Tensor = self.linear(hidden_TD)
            return logits_TV
        wide_TD = hidden_TD.float()
        logits_TV = wide_TD.new_empty(*hidden_TD.shape[:-1], weight_VD.shape[0])
        rows = max(1, _WIDE_NUMBERS // weight_VD.shape[1])
        for start in range(0, weight_VD.shape[0], rows):
            part = slice(start, start + rows)
            bias = None if bias_V is None else bias_V[part].float()
            logits_TV[..., part] = nn.functional.linear(wide_TD, weight_VD[part].float(), bias)
        return logits_TV


def widened(head: nn.Module) -> nn.Module:
    """``head`` in fp32 where it is a plain linear map; itself where it is something else (quantised, for one)."""
    return WideLinear(head) if type(head) is nn.Linear else head


class OwnHead:
    """The way of a causal model from its decoder's output to logits.

    Args:
        model: of transformers, with a head; neither it nor its parts are changed.
        decoder: its part that ends in hidden states.

    Raises:
        ValueError: the decoder is no part of the model.
    """

    def __init__(self, model: Any, decoder: nn.Module) -> None:
        paths = {id(part): path for path, part in model.named_modules() if path}
        if id(decoder) not in paths:
            raise ValueError(f"{type(model).__name__} has no decoder apart from its head")
        self._model = _with(model, paths[id(decoder)].split("."), _Decoded())
        head = model.get_output_embeddings()
        if id(head) in paths:
            self._model = _with(self._model, paths[id(head)].split("."), widened(head))

    def __call__(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        """(T, V), float32."""
        logits_TV: torch.Tensor = self._model(inputs_embeds=hidden_TD[None], use_cache=False).logits[0]
        return logits_TV.float()


def _with(module: Any, path: list[str], part: nn.Module) -> Any:
    """A shallow copy of ``module`` that shares all its parts but the one at ``path``, in whose place ``part`` is."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    first, *rest = path
    twin._modules[first] = _with(module._modules[first], rest, part) if rest else part
    return twin


class _Decoded(nn.Module):
    """In a decoder's place: its output is the embeddings that it is given."""

    def forward(self, *_: Any, inputs_embeds: torch.Tensor, **__: Any) -> Any:
        return _Output((inputs_embeds,))


class _Output(tuple[torch.Tensor]):
    """A decoder's output by place and by name; all that is not hidden states (a cache, attentions, ...) is None."""

    __slots__ = ()

    @property
    def last_hidden_state(self) -> torch.Tensor:
        return self[0]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
