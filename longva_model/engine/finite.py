"""Logits that are no numbers: what to blame, and the error that says so.

Nothing is scored from NaN or infinite logits: an argmax of NaN is an id like any other, and would be read as an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn


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
    for name, tensor in model.named_parameters():
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
            if not found and any(not is_finite(tensor) for tensor in _tensors(output)):
                found.append(name)

        return after

    handles = [part.register_forward_hook(watch(name)) for name, part in model.named_modules() if name]
    try:
        rerun()
    finally:
        for handle in handles:
            handle.remove()
    return f"they arise in {found[0]}" if found else ""


def _tensors(output: Any) -> Iterable[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        if output.dtype.is_floating_point:
            yield output
    elif isinstance(output, (tuple, list)):
        for item in output:
            yield from _tensors(item)
    elif isinstance(output, dict):
        yield from _tensors(list(output.values()))
