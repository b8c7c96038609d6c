"""What transformers calls the cache that a model is given: ``cache`` in newer releases, ``past_key_values`` before."""

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
