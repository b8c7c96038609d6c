"""What newer releases of transformers renamed, under the name that the installed one takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from torch import nn


def cache_keyword(model: nn.Module) -> str:
    """The keyword under which ``model`` takes a cache, and under which its output holds it."""
    return _cache_parameter(type(model).forward)


@cache
def _cache_parameter(forward: Callable[..., Any]) -> str:
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def enable_checkpointing(model: Any) -> None:
    """Layers of a transformers model keep their inputs only, and compute the rest again on the way back."""
    settings = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)


def checkpointing_keyword(arguments: type) -> str:
    """The keyword that switches checkpointing in a class of training arguments."""
    known = inspect.signature(arguments).parameters
    return "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
