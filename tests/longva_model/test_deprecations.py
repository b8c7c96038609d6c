"""Nothing that we call in transformers is on its way out: pytest makes errors of warnings, this looks at the log."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from PIL import Image

from longva_model.renamed import cache_keyword, checkpointing_keyword, enable_checkpointing


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """What transformers logs from WARNING on, things said once before included."""
    from transformers.utils import logging as transformers_logging

    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_warning()
    transformers_logging.add_handler(handler)
    transformers_logging.warning_once.cache_clear()
    yield lines
    transformers_logging.remove_handler(handler)
    transformers_logging.set_verbosity(verbosity)


def test_forward_and_generate_log_no_deprecation(
    logged: list[str], tiny_model: Callable[..., Any], tiny_processor: Callable[..., Any]
) -> None:
    model = tiny_model()
    inputs = tiny_processor(model.config)(
        text="<image>\nwhat?", images=[Image.new("RGB", (50, 40))], return_tensors="pt"
    )
    with torch.no_grad():
        model(**inputs, use_cache=True)
    for beams in (1, 2):
        model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False, num_beams=beams)
    first = model.generate(**inputs, max_new_tokens=2, min_new_tokens=2, do_sample=False, return_dict_in_generate=True)
    ids = torch.cat([first.sequences, torch.tensor([[5]])], dim=1)
    cache = first[cache_keyword(model.language_model)]
    model.generate(ids, attention_mask=torch.ones_like(ids), past_key_values=cache, max_new_tokens=2, do_sample=False)
    assert not [line for line in logged if "deprecated" in line]


class Older(torch.nn.Module):
    """A model by the names of older releases."""

    def forward(self, inputs_embeds: Any = None, past_key_values: Any = None) -> None: ...

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any]) -> None:
        self.settings = gradient_checkpointing_kwargs


class Newer(Older):
    """The same by those of newer ones, the older still there."""

    def forward(self, inputs_embeds: Any = None, cache: Any = None, **kwargs: Any) -> None: ...

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs: dict[str, Any]) -> None:
        self.new_settings = activation_checkpointing_kwargs


def test_names_of_older_and_newer_releases() -> None:
    old, new = Older(), Newer()
    assert cache_keyword(old) == "past_key_values" and cache_keyword(new) == "cache"
    enable_checkpointing(old)
    enable_checkpointing(new)
    assert old.settings == new.new_settings == {"use_reentrant": False} and not hasattr(new, "settings")
    before = dataclasses.make_dataclass("Before", [("gradient_checkpointing", bool)])
    after = dataclasses.make_dataclass("After", [("gradient_checkpointing", bool), ("activation_checkpointing", bool)])
    assert checkpointing_keyword(before) == "gradient_checkpointing"
    assert checkpointing_keyword(after) == "activation_checkpointing"
