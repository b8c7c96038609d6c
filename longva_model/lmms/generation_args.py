"""lmms-eval's generation settings as a ``Generate`` leaf."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vniah.contract.requests import Generate
from vniah.notices import notice

# What lmms-eval puts into every task that names no stop string. Its own models drop it, and an answer of
# several paragraphs (video_dc499) must not end at the first.
_NO_STOP = ["\n\n"]
_KNOWN = {
    "until",
    "max_new_tokens",
    "max_gen_toks",
    "min_new_tokens",
    "do_sample",
    "temperature",
    "top_p",
    "top_k",
    "num_beams",
    "repetition_penalty",
    "seed",
}
# Settings of other models, or of lmms-eval itself, that mean nothing here.
_IGNORED = {"image_aspect_ratio", "use_cache", "return_dict", "truncation", "max_length", "max_agentic_steps"}
_DEFAULT_MAX_NEW_TOKENS = 1024  # of lmms-eval's LongVA
_DEFAULT_TOP_K = 50  # of transformers


def generate_leaf(settings: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> Generate:
    """Read ``generation_kwargs``; greedy unless ``do_sample`` or a temperature above 0 says otherwise.

    ``do_sample: false`` wins over a temperature, as in transformers; ``do_sample: true`` without one samples
    at the checkpoint's temperature. Whatever the task leaves open is as ``model.generate`` has it: the
    checkpoint's generation config, then transformers' default.

    Args:
        settings: of the task.
        defaults: the checkpoint's generation config (``Backend.generation_defaults``).

    Raises:
        ValueError: a setting that is no number where one is needed, or out of its range.
    """
    unknown = [key for key in settings if key not in _KNOWN | _IGNORED]
    if unknown:
        notice(f"generation settings that are not honoured: {', '.join(sorted(unknown))}")
    own = {key: value for key, value in settings.items() if value is not None}
    values = {**(defaults or {}), **own}
    until = own.get("until") or ()
    stop = (until,) if isinstance(until, str) else tuple(str(word) for word in until) if until != _NO_STOP else ()
    temperature = _number(own, "temperature", 0.0)
    sampled = own.get("do_sample")
    if sampled is None:
        sampled = temperature > 0
    if not sampled:
        temperature = 0.0
    elif temperature == 0.0:
        temperature = _number(defaults or {}, "temperature", 1.0) or 1.0
    leaf = Generate(
        max_new_tokens=int(_number(own, "max_new_tokens", _number(own, "max_gen_toks", _DEFAULT_MAX_NEW_TOKENS))),
        min_new_tokens=int(_number(values, "min_new_tokens", 0)),
        temperature=temperature,
        top_p=_number(values, "top_p", 1.0) if sampled else 1.0,
        top_k=int(_number(values, "top_k", _DEFAULT_TOP_K)) if sampled else 0,
        num_beams=int(_number(own, "num_beams", 1)),
        repetition_penalty=_number(values, "repetition_penalty", 1.0),
        seed=int(_number(own, "seed", 0)),
        stop=stop,
    )
    for name, low in (("max_new_tokens", 1), ("min_new_tokens", 0), ("num_beams", 1), ("top_k", 0), ("temperature", 0)):
        if getattr(leaf, name) < low:
            raise ValueError(f"{name}={getattr(leaf, name)}: must be at least {low}")
    if not 0 <= leaf.top_p <= 1:
        raise ValueError(f"top_p={leaf.top_p}: must lie from 0 to 1")
    if leaf.repetition_penalty <= 0:
        raise ValueError(f"repetition_penalty={leaf.repetition_penalty}: must be positive")
    return leaf


def _number(values: Mapping[str, Any], key: str, default: float) -> float:
    value = values.get(key)
    if value is None:
        return default
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{key}={value!r}: expected a number") from None
