"""From hidden states to logits by a model's own head, in fp32, and what to say of logits that are no numbers.

What stands between hidden states and logits differs (Cohere and Granite scale, Gemma 2 caps), so a model's own
forward makes them: it is called with a stand-in for its decoder, which hands the given hidden states on. Only the
linear map itself is made anew: in fp32, where the model's would round the logits to bf16 before anyone compares them.

Nothing is scored from NaN or infinite logits: an argmax of NaN is an id like any other, and would be read as an answer.

Shapes: T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Shard
from torch.utils._pytree import tree_leaves

# Of a head's weights, so many are held in fp32 at once (256 MiB).
_WIDE_NUMBERS = 2**26


class WideLinear(nn.Module):
    """A linear map whose products and sums are fp32, whatever the type of its weights."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        """(..., T, D) to (..., T, V); fp32 (fp64 for fp64 weights)."""
        with _at_hand(self.linear):
            weight_VD, bias_V = self.linear.weight, self.linear.bias
            if not isinstance(weight_VD, DTensor):
                return self._logits(hidden_TD, weight_VD, bias_V)
            # Each of the processes that hold a model together has some rows of the vocabulary.
            local_V = bias_V.to_local() if isinstance(bias_V, DTensor) else bias_V
            logits_TV = self._logits(hidden_TD, weight_VD.to_local(), local_V)
            if weight_VD.placements[0].is_replicate():
                return logits_TV
            shape = torch.Size((*logits_TV.shape[:-1], weight_VD.shape[0]))
            stride = torch.empty(shape, device="meta").stride()
            whole_TV: torch.Tensor = DTensor.from_local(
                logits_TV, weight_VD.device_mesh, [Shard(-1)], run_check=False, shape=shape, stride=stride
            ).full_tensor()
            return whole_TV

    @staticmethod
    def _logits(hidden_TD: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor | None) -> torch.Tensor:
        # Of a model that is spread over devices, the decoder may end on another one.
        hidden_TD = hidden_TD.to(weight_VD.device)
        if weight_VD.dtype not in (torch.bfloat16, torch.float16):
            return nn.functional.linear(hidden_TD, weight_VD, bias_V)
        wide_TD = hidden_TD.float()
        logits_TV = wide_TD.new_empty(*hidden_TD.shape[:-1], weight_VD.shape[0])
        rows = max(1, _WIDE_NUMBERS // weight_VD.shape[1])
        for start in range(0, weight_VD.shape[0], rows):
            part = slice(start, start + rows)
            bias = None if bias_V is None else bias_V[part].float()
            logits_TV[..., part] = nn.functional.linear(wide_TD, weight_VD[part].float(), bias)
        return logits_TV


def _at_hand(module: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Inside, the weights of a module are where it computes, wherever accelerate keeps them between forwards."""
    if not hasattr(module, "_hf_hook"):
        return contextlib.nullcontext()
    from accelerate.utils import align_module_device

    held: contextlib.AbstractContextManager[None] = align_module_device(module)
    return held


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
    if "_hf_hook" in vars(twin):
        # Where accelerate moves tensors between devices, a module's own forward is bound to the module it was made of.
        for name in ("_hf_hook", "_old_forward", "forward"):
            vars(twin).pop(name, None)
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


class NotFiniteError(Exception):
    """Logits hold NaN or infinity. For the engine, which knows the prompt; users see a ``ValueError``.

    Attributes:
        ids: generated before it.
    """

    def __init__(self, ids: Sequence[int] = ()) -> None:
        super().__init__("logits are not finite")
        self.ids = list(ids)


def is_finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def not_finite(backend: Any, embeddings: Iterable[torch.Tensor], rerun: Callable[[], Any]) -> ValueError:
    """The error for logits that are not finite, with the tensor or layer to blame where it can be told.

    Args:
        embeddings: of the prompt, in pieces.
        rerun: runs the prompt again; its layers are watched.
    """
    where = _bad_weights(backend.model) or _bad_embeddings(embeddings) or _bad_layer(backend.model, rerun)
    half = backend.dtype == torch.float16
    advice = "use dtype=bfloat16 or dtype=float32" if half else "check the checkpoint's weights, or fetch it again"
    return ValueError(
        f"the logits of {backend.name} are not finite (NaN or infinite): {where or 'its head makes them so'}; nothing "
        f"is scored from them, {advice}"
    )


def _bad_weights(model: nn.Module) -> str:
    for name, weight in model.named_parameters():
        # Whole, so that all processes that hold a model together say the same.
        tensor = weight.full_tensor() if isinstance(weight, DTensor) else weight
        if not tensor.is_meta and tensor.dtype.is_floating_point and not is_finite(tensor):
            count = int((~torch.isfinite(tensor)).sum())
            return f"{count:,} of {tensor.numel():,} values of its weight {name} are not finite"
    return ""


def _bad_embeddings(embeddings: Iterable[torch.Tensor]) -> str:
    place = 0
    for piece_TD in embeddings:
        if not is_finite(piece_TD):
            row = int((~torch.isfinite(piece_TD)).any(-1).nonzero()[0])
            return f"the embedding of prompt token {place + row:,} is not finite"
        place += len(piece_TD)
    return ""


def _bad_layer(model: nn.Module, rerun: Callable[[], Any]) -> str:
    """The first part of the model whose output is not finite in another run. Parts end before what holds them does."""
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def after(module: nn.Module, inputs: Any, output: Any) -> None:
            tensors = (leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor))
            if not found and any(x.dtype.is_floating_point and not is_finite(x) for x in tensors):
                found.append(name)

        return after

    handles = [part.register_forward_hook(watch(name)) for name, part in model.named_modules() if name]
    try:
        rerun()
    finally:
        for handle in handles:
            handle.remove()
    return f"they arise in {found[0]}" if found else ""
