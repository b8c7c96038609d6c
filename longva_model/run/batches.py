"""Dealing jobs out: to windows that fit in memory, and to several processes by what they cost.

No communication: the runner gathers and calls.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from PIL import Image as PILImage

from longva_model.backends.backend import Backend
from longva_model.pictures.opening import ArrayFrames
from longva_model.prompts.prompting import Prompt
from vniah.contract.cost import deal_out, leaf_costs, segment_tokens
from vniah.contract.requests import Frames, Image, Request, RequestTree, Segment

J = TypeVar("J")
# Images and frames that tasks hand over are held in memory while a window of prompts is run; videos and
# haystacks are not.
_WINDOW_PIXELS = 64_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A job as its builder saw it.

    Attributes:
        key: of the journal.
        line: the journal's, if it has one.
        request: the prompt without its media.
        image_tokens: tokens of each image that is no frame, by source.
        tokens: of the prompt with its answer.
    """

    key: str
    line: dict[str, Any] | None
    request: Request
    image_tokens: dict[str, int]
    tokens: int


class Costs:
    """What requests cost on a model.

    Args:
        image_tokens: tokens of images that are no frames, by source.
        shared: whether requests share prefixes.
    """

    def __init__(self, backend: Backend, image_tokens: Mapping[str, int], *, shared: bool) -> None:
        self._shape = backend.shape
        self._image_tokens = image_tokens
        self._shared = shared
        self._count = functools.cache(lambda text: len(backend.token_ids(text)))

    def deal_out(self, requests: Sequence[Request], parts: int) -> list[list[int]]:
        """Indices of ``requests``, in ``parts`` runs of about equal FLOPs that share as much as they can."""
        costs = leaf_costs(RequestTree(requests), self._shape, self._tokens, self._count, shared=self._shared)
        return [[leaf.index for leaf in run] for run in deal_out(costs, parts)]

    def _tokens(self, segment: Segment) -> int:
        if isinstance(segment, Image) and not segment.as_frame:
            return self._image_tokens[segment.source]
        return segment_tokens(segment, self._shape, self._count)


def shared_sources(requests: Sequence[Request], shares: Sequence[Sequence[int]], part: int) -> set[str]:
    """Sources of frames that ``shares[part]`` and another share show."""
    shown = [
        {item.source for index in share for item in requests[index].segments if isinstance(item, Frames)}
        for share in shares
    ]
    users = Counter(source for one in shown for source in one)
    return {source for source in shown[part] if users[source] > 1}


def windows(jobs: Sequence[J], build: Callable[[J], Prompt]) -> Iterator[list[tuple[J, Prompt]]]:
    """Group consecutive jobs so that the pixels in memory stay within ``_WINDOW_PIXELS``."""
    window: list[tuple[J, Prompt]] = []
    sources: set[str] = set()
    pixels = 0
    for job in jobs:
        prompt = build(job)
        added = {name: _pixels_in_memory(item) for name, item in prompt.media.items() if name not in sources}
        if window and pixels + sum(added.values()) > _WINDOW_PIXELS:
            yield window
            window, sources, pixels = [], set(), 0
            added = {name: _pixels_in_memory(item) for name, item in prompt.media.items()}
        window.append((job, prompt))
        sources.update(added)
        pixels += sum(added.values())
    if window:
        yield window


def _pixels_in_memory(item: Any) -> int:
    if isinstance(item, PILImage.Image):
        return item.width * item.height
    return item.pixels_in_memory if isinstance(item, ArrayFrames) else 0
