"""Segments to embeddings: the one place where the contract's segments meet a model's tokens.

Shapes: n tokens of a piece, D hidden size.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from longva_model.backends.backend import Backend
from longva_model.frames.embeddings import FrameTokens
from vniah.contract.requests import Frames, Image, Segment, Text, Tokens
from vniah.contract.sources import HeldFrames

_TOKENS_AT_ONCE = 8192


class Embedder:
    """Turns segments into embeddings, piece by piece, from the media they name.

    Args:
        preprocess: "pad", "crop", or "auto" (each source's own ``preprocess``, else crop).
    """

    def __init__(self, backend: Backend, frames: FrameTokens, preprocess: str = "auto") -> None:
        self.backend = backend
        self.frames = frames
        self.preprocess = preprocess
        self.media: dict[str, Any] = {}
        # Visuals differ in how their frames are fitted; the adapter fills this per source.
        self.source_preprocess: dict[str, str] = {}
        self.videos: set[str] = set()
        self.token_ids = functools.lru_cache(maxsize=4096)(lambda text: tuple(backend.token_ids(text)))
        self._image_cache: dict[str, torch.Tensor] = {}

    def segment_tokens(self, segment: Segment) -> int:
        """Tokens that a segment takes in the prompt.

        Raises:
            ValueError: a source that the media do not name.
        """
        if isinstance(segment, Text):
            return len(self.token_ids(segment.text))
        if isinstance(segment, Frames):
            suffix = self._suffix(segment)
            frames = (segment.stop - segment.start) * self.backend.tokens_per_frame
            return frames + (0 if suffix is None else len(suffix))
        if isinstance(segment, Tokens):
            return segment.stop - segment.start
        if segment.as_frame:
            return self.backend.tokens_per_frame
        return self.backend.image_tokens(self._source(segment.source).size)

    def tokens(self, segments: Iterable[Segment]) -> int:
        """Tokens that segments take in all."""
        return sum(map(self.segment_tokens, segments))

    def _ids(self, segment: Text | Tokens) -> Sequence[int]:
        if isinstance(segment, Text):
            return self.token_ids(segment.text)
        ids: Sequence[int] = self._source(segment.source).token_ids(segment.start, segment.stop)
        return ids

    def prompt_ids(self, segments: Sequence[Segment]) -> list[int]:
        """One id a token of the prompt; where a visual stands, the prompt's first id (visual tokens have none)."""
        pieces = [self._ids(segment) if isinstance(segment, (Text, Tokens)) else None for segment in segments]
        first = next((ids[0] for ids in pieces if ids is not None and len(ids)), 0)
        found: list[int] = []
        for segment, ids in zip(segments, pieces, strict=True):
            found += map(int, [first] * self.segment_tokens(segment) if ids is None else ids)
        return found

    def stream(self, segments: Sequence[Segment], extra_ids: Sequence[int] = ()) -> Iterator[torch.Tensor]:
        """Yield the embeddings of ``segments`` and then of ``extra_ids`` in order, as (n, D) pieces."""
        for segment in segments:
            if isinstance(segment, (Text, Tokens)):
                ids = self._ids(segment)
                # A span may be half a million tokens: never embedded at once.
                for start in range(0, len(ids), _TOKENS_AT_ONCE):
                    yield self.backend.embed_ids(ids[start : start + _TOKENS_AT_ONCE])
            elif isinstance(segment, Frames):
                source, fitted = self._source(segment.source), self._preprocess_of(segment.source)
                for tokens_NtD in self.frames.get(source, segment.start, segment.stop, fitted):
                    yield tokens_NtD.flatten(0, 1)
                suffix = self._suffix(segment)
                if suffix is not None:
                    yield suffix
            else:
                yield self._image(segment)
        if len(extra_ids):
            yield self.backend.embed_ids(extra_ids)

    def _image(self, segment: Image) -> torch.Tensor:
        image = self._source(segment.source)
        if segment.as_frame:
            # A source of length 1: so a needle passes the frame pipeline and its cache.
            still = HeldFrames(np.asarray(image.convert("RGB"))[None], f"still:{segment.source}")
            return next(self.frames.get(still, 0, 1, self._preprocess_of(segment.source)))[0]
        if segment.source not in self._image_cache:
            if len(self._image_cache) >= 16:
                self._image_cache.pop(next(iter(self._image_cache)))
            self._image_cache[segment.source] = self.backend.encode_image(image)
        return self._image_cache[segment.source]

    def _suffix(self, frames: Frames) -> torch.Tensor | None:
        """What follows an ordinary video's last frame, (1, D), if anything."""
        if frames.source not in self.videos or frames.stop != len(self._source(frames.source)):
            return None
        return self.backend.video_suffix()

    def _preprocess_of(self, source: str) -> str:
        return self.preprocess if self.preprocess != "auto" else self.source_preprocess.get(source, "crop")

    def _source(self, name: str) -> Any:
        try:
            return self.media[name]
        except KeyError:
            raise ValueError(f"a segment names the source {name!r}, which the media do not hold") from None


def rechunk(pieces: Iterator[torch.Tensor], size: int) -> Iterator[torch.Tensor]:
    """Regroup (n, D) pieces into chunks of ``size`` rows, the last one shorter."""
    held: list[torch.Tensor] = []
    rows = 0
    for piece in pieces:
        while piece.shape[0]:
            take = min(size - rows, piece.shape[0])
            held.append(piece[:take])
            rows += take
            piece = piece[take:]
            if rows == size:
                yield torch.cat(held) if len(held) > 1 else held[0]
                held, rows = [], 0
    if rows:
        yield torch.cat(held) if len(held) > 1 else held[0]
