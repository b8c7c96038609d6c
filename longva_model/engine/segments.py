"""Segments to embeddings: the one place where the contract's segments meet a model's tokens.

Shapes: n tokens of a piece, D hidden size.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
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

    def prompt_ids(self, segments: Sequence[Segment]) -> list[int]:
        """One id a token of the prompt; where a visual stands, the prompt's first id (visual tokens have none)."""
        pieces: list[list[int] | None] = []
        for segment in segments:
            if isinstance(segment, Text):
                pieces.append(list(self.token_ids(segment.text)))
            elif isinstance(segment, Tokens):
                ids = self._source(segment.source).token_ids(segment.start, segment.stop)
                pieces.append([int(token) for token in ids])
            else:
                pieces.append(None)
        first = next((ids[0] for ids in pieces if ids), 0)
        found: list[int] = []
        for segment, piece in zip(segments, pieces, strict=True):
            found += [first] * self.segment_tokens(segment) if piece is None else piece
        return found

    def stream(self, segments: Sequence[Segment], extra_ids: Sequence[int] = ()) -> Iterator[torch.Tensor]:
        """Yield the embeddings of ``segments`` and then of ``extra_ids`` in order, as (n, D) pieces."""
        for segment in segments:
            if isinstance(segment, Text):
                ids = self.token_ids(segment.text)
                if ids:
                    yield self.backend.embed_ids(ids)
            elif isinstance(segment, Tokens):
                source = self._source(segment.source)
                # A span may be half a million tokens: never embedded at once.
                for start in range(segment.start, segment.stop, _TOKENS_AT_ONCE):
                    stop = min(start + _TOKENS_AT_ONCE, segment.stop)
                    yield self.backend.embed_ids(source.token_ids(start, stop))
            elif isinstance(segment, Frames):
                source = self._source(segment.source)
                for tokens_NtD in self.frames.get(
                    source, segment.start, segment.stop, self._preprocess_of(segment.source)
                ):
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
            return self.frames.image(still, self._preprocess_of(segment.source))
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
        if self.preprocess != "auto":
            return self.preprocess
        return self.source_preprocess.get(source, "crop")

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
