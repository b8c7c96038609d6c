"""Calls of a model's processor, with pixels or with shapes alone.

Tensors on torch's "meta" device have a shape and no content. Processors compute with them as with others, so grids and
token ids come out as those of real frames would, and pixels come out as shapes.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch


class ProcessorCalls:
    """Calls ``processor`` for one prompt at a time.

    Args:
        processor: of ``AutoProcessor``.
        placeholders: ids of the tokens that stand for visuals.
    """

    def __init__(self, processor: Any, placeholders: Sequence[int]) -> None:
        self.processor = processor
        self.placeholders = tuple(placeholders)
        # Some processors compute with values even where they need a shape: they get zeros that take no memory.
        self._meta = True

    @property
    def name(self) -> str:
        return type(self.processor).__name__

    def made(self, text: str, given: Mapping[str, Any], thin: bool = False) -> dict[str, Any]:
        """What the processor makes of real frames and images.

        Args:
            text: the prompt, each visual one token.
            given: ``images``, ``videos`` and settings.
            thin: tokenise a run of placeholders as one.

        Raises:
            ValueError: it does not take them.
        """
        try:
            return self._call(self._with_tokenizer(thin), text, given)
        except Exception as error:  # of any processor that there is
            raise self._refused(error) from error

    def shapes(self, text: str, given: Mapping[str, Any], thin: bool = False) -> dict[str, Any]:
        """As ``made``, of frames and images on the meta device; tensors that depend on pixels are there or zeros."""
        errors = []
        if getattr(getattr(self.processor, "video_processor", None), "use_token_compression", None):
            given = {**given, "use_token_compression": False}
        for meta in (True, False) if self._meta else (False,):
            processor = self._with_tokenizer(thin)
            if not meta:
                for part in ("image_processor", "video_processor"):
                    if getattr(processor, part, None) is not None:
                        setattr(processor, part, _Zeros(getattr(processor, part)))
            try:
                made = self._call(processor, text, given)
            except Exception as error:  # of any processor that there is
                errors.append(error)
                continue
            self._meta = meta
            return made
        raise self._refused(errors[0]) from errors[0]

    def _with_tokenizer(self, thin: bool) -> Any:
        """A copy of the processor, which may be given other parts."""
        found = copy.copy(self.processor)
        if thin:
            found.tokenizer = _Thin(found.tokenizer, self.placeholders)
        return found

    @staticmethod
    def _call(processor: Any, text: str, given: Mapping[str, Any]) -> dict[str, Any]:
        found = dict(processor(text=[text], return_tensors="pt", **given))
        found.pop("video_metadata", None)
        return found

    def _refused(self, error: Exception) -> ValueError:
        cause = " ".join(str(error).split())[:300]
        return ValueError(f"{self.name} does not take this prompt: {type(error).__name__}: {cause}")


class _Delegate:
    """Whatever ``inner`` is, besides what a subclass does itself."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Thin(_Delegate):
    """A tokenizer that is given a run of one placeholder as a single one and repeats its id as often as it stood there.

    A long video is hundreds of thousands of placeholders, which a tokenizer reads one by one.
    """

    def __init__(self, inner: Any, placeholders: Sequence[int]) -> None:
        super().__init__(inner)
        tokens = [str(token) for token in inner.convert_ids_to_tokens(list(placeholders))]
        self._runs = re.compile("|".join(f"(?:{re.escape(token)})+" for token in tokens))
        self._ids = dict(zip(tokens, placeholders, strict=True))

    def __call__(self, text: Any, *args: Any, **kwargs: Any) -> Any:
        (whole,) = [text] if isinstance(text, str) else text
        expected: list[int] = []
        counts: list[int] = []

        def shortened(match: re.Match[str]) -> str:
            run = match.group()
            token = next(token for token in self._ids if run.startswith(token))
            expected.append(self._ids[token])
            counts.append(len(run) // len(token))
            return token

        short = self._runs.sub(shortened, whole)
        kwargs.pop("return_tensors", None)
        made = dict(self._inner([short], *args, **kwargs))
        ids_T = np.asarray(made["input_ids"][0])
        places = np.flatnonzero(np.isin(ids_T, list(self._ids.values())))
        if ids_T[places].tolist() != expected:
            raise ValueError(f"{len(expected)} runs of placeholders became {len(places)} tokens")
        times_T = np.ones(len(ids_T), dtype=np.int64)
        times_T[places] = counts
        return {
            name: [np.repeat(np.asarray(value[0]), times_T).tolist()]
            for name, value in made.items()
            if len(value[0]) == len(ids_T)
        }


class _Zeros(_Delegate):
    """An image or video processor whose results are zeros of the right shapes, without memory behind them."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        found = self._inner(*args, **kwargs)
        for name, value in found.items():
            found[name] = self._zeros(value)
        return found

    def _zeros(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.is_meta:
            return torch.zeros((), dtype=value.dtype).expand(value.shape)
        return [self._zeros(one) for one in value] if isinstance(value, list) else value
