"""lmms-eval's generation settings as a ``Generate`` leaf."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vniah.requests import Generate

# Settings of other models, or of lmms-eval itself, that mean nothing here.
_IGNORED = {"image_aspect_ratio", "use_cache", "return_dict", "truncation", "max_length"}


def generate_leaf(settings: Mapping[str, Any]) -> Generate:
    """Read ``generation_kwargs``; greedy unless ``do_sample`` or a temperature above 0 says otherwise.

    ``do_sample: false`` wins over a temperature, as in transformers; ``do_sample: true`` without one samples
    at 1.0.

    Raises:
        ValueError: a setting that is not a number where one is needed.
    """
    values = {key: value for key, value in settings.items() if key not in _IGNORED}
    until = values.get("until") or ()
    stop = (until,) if isinstance(until, str) else tuple(str(word) for word in until)
    temperature = float(values.get("temperature") or 0.0)
    sampled = values.get("do_sample")
    if sampled is False:
        temperature = 0.0
    elif sampled is True and temperature == 0.0:
        temperature = 1.0
    top_p, top_k = values.get("top_p"), values.get("top_k")
    return Generate(
        max_new_tokens=int(values.get("max_new_tokens") or values.get("max_gen_toks") or 1024),
        min_new_tokens=int(values.get("min_new_tokens") or 0),
        temperature=temperature,
        top_p=1.0 if top_p is None else float(top_p),
        top_k=0 if top_k is None else int(top_k),
        num_beams=int(values.get("num_beams") or 1),
        repetition_penalty=float(values.get("repetition_penalty") or 1.0),
        seed=int(values.get("seed") or 0),
        stop=stop,
    )
