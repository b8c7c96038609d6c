"""Calls of a model's processor, with pixels or with shapes alone.

Tensors on torch's "meta" device have a shape and no content. Processors compute with them as with others, so grids and
token ids come out as those of real frames would, and pixels come out as shapes.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

# How much of a prompt is written out. "runs": a run of placeholders is tokenised as one. "grids": the processor is told
# of one token a unit, where it counts in patches, and writes so many; the caller repeats them.
Thinness = Literal["whole", "runs", "grids"]

# How shapes are had: by tensors on the meta device; with zeros that take no memory in place of its results, since some
# processors look at values even where they need a shape; by black pictures, where pixels are computed without torch.
_Way = Literal["meta", "zeros", "black"]
_WAYS: tuple[_Way, ...] = ("meta", "zeros", "black")
_MOST_BLACK = 64


class ProcessorCalls:
    """Calls ``processor`` for one prompt at a time.

    Args:
        processor: of ``AutoProcessor``.
        placeholders: ids of the tokens that stand for visuals.
    """

    def __init__(self, processor: Any, placeholders: Sequence[int]) -> None:
        self.processor = processor
        self.placeholders = tuple(placeholders)
        self._way: _Way = "meta"
        # Whether it takes ids of runs: some ask the tokenizer at which letters its tokens stand.
        self._runs = True

    @property
    def name(self) -> str:
        return type(self.processor).__name__

    def made(self, text: str, given: Mapping[str, Any], thin: Thinness = "whole") -> dict[str, Any]:
        """What the processor makes of real frames and images.

        Args:
            text: the prompt, each visual one token.
            given: ``images``, ``videos`` and settings.
            thin: how much of it is written out.

        Raises:
            ValueError: it does not take them.
        """
        try:
            return self._call(self._copied(thin, zeros=False), text, given)
        except Exception as error:  # of any processor that there is
            if thin == "runs" and self._runs:
                found = self.made(text, given)
                self._runs = False
                return found
            raise self._refused(error) from error

    def shapes(self, text: str, given: Mapping[str, Any], thin: Thinness = "whole") -> dict[str, Any]:
        """As ``made``, of frames and images on the meta device; tensors that depend on pixels are there or zeros."""
        errors: list[Exception] = []
        if getattr(getattr(self.processor, "video_processor", None), "use_token_compression", None):
            given = {**given, "use_token_compression": False}
        for way in _WAYS[_WAYS.index(self._way) :]:
            if way == "black" and _pictures(given) > _MOST_BLACK:
                continue
            shown = _blackened(given) if way == "black" else given
            try:
                found = self._call(self._copied(thin, zeros=way == "zeros"), text, shown)
            except Exception as error:  # of any processor that there is
                errors.append(error)
                continue
            # What a large prompt is refused for may hold for it alone.
            self._way = way if way != "black" else self._way
            return found
        if thin == "runs" and self._runs:
            found = self.shapes(text, given)
            self._runs = False
            return found
        raise self._refused(errors[0]) from errors[0]

    def _copied(self, thin: Thinness, zeros: bool) -> Any:
        """A copy of the processor with other parts where they are needed."""
        found = copy.copy(self.processor)
        if thin == "runs" and self._runs:
            found.tokenizer = _Thin(found.tokenizer, self.placeholders)
        for part in ("image_processor", "video_processor"):
            inner = getattr(found, part, None)
            if inner is not None and (zeros or thin == "grids"):
                setattr(found, part, _Shapes(inner, zeros, thin == "grids"))
        return found

    @staticmethod
    def _call(processor: Any, text: str, given: Mapping[str, Any]) -> dict[str, Any]:
        # Tensors of pixels and grids alone: lists of ids are long, and made arrays of faster than tensors.
        tensors = {"return_tensors": "pt"}
        try:
            found = dict(processor(text=[text], images_kwargs=tensors, videos_kwargs=tensors, **given))
        except AttributeError:  # some look at the shape of what they then have as a list
            found = dict(processor(text=[text], **tensors, **given))
        found.pop("video_metadata", None)
        found = {name: _stacked(value) for name, value in found.items()}
        for part in ("image_processor", "video_processor"):
            if isinstance(inner := getattr(processor, part, None), _Shapes):
                found |= inner.grids
        return found

    def _refused(self, error: Exception) -> ValueError:
        cause = " ".join(str(error).split())[:300]
        return ValueError(f"{self.name} does not take this prompt: {type(error).__name__}: {cause}")


def _stacked(value: Any) -> Any:
    """A list of tensors of one shape as a tensor: LLaVA-OneVision's processor of transformers 5.17 gives such lists."""
    if isinstance(value, list) and value and all(isinstance(one, torch.Tensor) for one in value):
        if len(value) == 1:
            return value[0][None]
        if len({one.shape for one in value}) == 1:
            return torch.stack(value)
    return value


def _pictures(given: Mapping[str, Any]) -> int:
    return sum(map(len, given.get("images", ()))) + sum(map(len, given.get("videos", ())))


def _blackened(given: Mapping[str, Any]) -> dict[str, Any]:
    """Pictures of the same shapes that are there."""

    def black(shape: torch.Size) -> torch.Tensor:
        return torch.zeros((), dtype=torch.uint8).expand(shape)

    found = dict(given)
    if "images" in given:
        found["images"] = [[black(image.shape) for image in images] for images in given["images"]]
    if "videos" in given:
        found["videos"] = [black(video.shape) for video in given["videos"]]
    return found


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


class _Shapes(_Delegate):
    """An image or video processor of shapes alone.

    Args:
        zeros: results are zeros of the right shapes without memory behind them, in place of tensors on the meta device.
        thin: it tells of one token a unit; how many patches there are stands in ``grids``.
    """

    def __init__(self, inner: Any, zeros: bool, thin: bool) -> None:
        super().__init__(inner)
        self._zeros, self._thin = zeros, thin
        self.grids: dict[str, torch.Tensor] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        found = self._inner(*args, **kwargs)
        for name, value in found.items():
            if self._thin and name.endswith("grid_thw"):
                self.grids[name] = value
                found[name] = torch.cat([value[:, :1], torch.full_like(value[:, 1:], self._inner.merge_size)], dim=1)
            elif self._zeros:
                found[name] = _emptied(value)
        return found


def _emptied(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.is_meta:
        # A mask tells what is kept; of shapes alone, all is.
        kept = value.dtype == torch.bool
        return torch.full((), kept, dtype=value.dtype).expand(value.shape)
    return [_emptied(one) for one in value] if isinstance(value, list) else value
