"""Atoms to chunks: what one forward is given, and where visual features come from.

Shapes: T tokens of a chunk, P axes of positions, V visual tokens of a chunk, k levels of features (1, and one for each
DeepStack layer), D hidden size, S tokens from the prompt's start to the chunk's end.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from longva_model.engine.atoms import AtomTable, Lowered, Series
from vniah.contract.sources import FrameSource

if TYPE_CHECKING:
    from longva_model.backends.backend import Backend
    from longva_model.frames.embeddings import FrameTokens

# Images are encoded as they come, and this many kept.
_IMAGES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Tokens that one forward is given.

    Attributes:
        ids_T: ids, placeholders at visual tokens (-1 where the model has none).
        positions: absolute, (T,) where they run on, else (P, T).
        start: how many tokens stand before.
        visual_T: where visual tokens are.
        features_kVD: of the visual tokens in order; None where there are none.
        types_S: 1 at visual tokens and 0 at others, from the prompt's start to the chunk's end. (Some models' masks
            ask what stands before.)
    """

    ids_T: torch.Tensor
    positions: torch.Tensor
    start: int
    visual_T: torch.Tensor
    features_kVD: torch.Tensor | None
    types_S: torch.Tensor

    def __len__(self) -> int:
        return len(self.ids_T)

    def take(self, rows_n: torch.Tensor) -> Chunk:
        """Some of its tokens, as a process of a ring computes them."""
        features = None
        if self.features_kVD is not None:
            of_visual_T = self.visual_T.cumsum(0) - 1
            features = self.features_kVD[:, of_visual_T[rows_n[self.visual_T[rows_n]]]]
        return replace(
            self,
            ids_T=self.ids_T[rows_n],
            positions=self.positions[..., rows_n],
            visual_T=self.visual_T[rows_n],
            features_kVD=features,
        )


class Feeder:
    """Makes chunks, encoding frames and images on the way.

    Args:
        frames: frame embeddings (see ``frames/embeddings.py``).
    """

    def __init__(self, backend: Backend, frames: FrameTokens) -> None:
        self.backend = backend
        self.frames = frames
        self._images: OrderedDict[Series, torch.Tensor] = OrderedDict()

    def chunks(
        self,
        table: AtomTable,
        prompt: Lowered,
        start: int = 0,
        stop: int | None = None,
        ids: Sequence[int] = (),
        *,
        size: int,
        behind: int = 0,
    ) -> Iterator[Chunk]:
        """Atoms ``start`` to ``stop`` of a prompt, then ``ids`` behind it, in chunks of at most ``size`` tokens.

        A unit is never cut: one that is longer than a chunk is fed whole.

        Args:
            ids: stand behind the whole prompt; given only where ``stop`` is its end.
            behind: how many tokens behind the prompt came before ``ids``.
        """
        stop = len(prompt) if stop is None else stop
        codes_A = np.concatenate([prompt.atoms_A[start:stop], np.asarray(ids, np.int64)])
        ends_A = np.cumsum(table.sizes(codes_A))
        begin = prompt.begin(start) + (behind if start == len(prompt) else 0)
        first = 0
        while first < len(codes_A):
            done = int(ends_A[first - 1]) if first else 0
            last = max(int(np.searchsorted(ends_A, done + size, "right")), first + 1)
            yield self._chunk(table, prompt, codes_A[first:last], begin + done)
            first = last

    def _chunk(self, table: AtomTable, prompt: Lowered, codes_A: NDArray[np.int64], start: int) -> Chunk:
        sizes_A = table.sizes(codes_A)
        device = self.backend.device
        visual_T = np.repeat(codes_A < 0, sizes_A)
        positions_PT = prompt.positions(start, start + len(visual_T)).astype(np.int64)
        pieces = [piece for run in table.runs(codes_A) for piece in self._features(*run)]
        return Chunk(
            ids_T=torch.from_numpy(np.repeat(table.ids(codes_A), sizes_A)).to(device),
            positions=torch.from_numpy(positions_PT if prompt.positions_PT is not None else positions_PT[0]).to(device),
            start=start,
            visual_T=torch.from_numpy(visual_T).to(device),
            features_kVD=torch.cat(pieces, 1) if pieces else None,
            types_S=torch.from_numpy(_types(table, prompt, start, visual_T)).to(device),
        )

    def _features(self, series: Series, start: int, stop: int) -> Iterator[torch.Tensor]:
        """Of the units ``start`` to ``stop``, (k, n tokens, D) a piece."""
        if isinstance(series.source, FrameSource):
            for rows_NtD in self.frames.get(series.source, start, stop, series.fitted):
                # A unit's levels lie one behind the other.
                rows_NktD = rows_NtD.unflatten(1, (-1, series.whole or series.tokens))
                here_NktD = rows_NktD[:, :, series.offset : series.offset + series.tokens]
                yield here_NktD.transpose(0, 1).flatten(1, 2)
            return
        if series not in self._images:
            if len(self._images) >= _IMAGES:
                self._images.popitem(last=False)
            source, backend = series.source, self.backend
            found_TD = backend.appended(series.fitted) if source is None else backend.encode_image(source)
            self._images[series] = found_TD.unflatten(0, (-1, series.tokens))
        yield self._images[series]


def _types(table: AtomTable, prompt: Lowered, start: int, visual_T: NDArray[np.bool_]) -> NDArray[np.uint8]:
    types_S = np.zeros(start + len(visual_T), np.uint8)
    types_S[start:] = visual_T
    if prompt.ends_A is not None:
        before_T = _visual(prompt, table)[:start]
        types_S[: len(before_T)] = before_T
    return types_S


@functools.lru_cache(maxsize=2)
def _visual(prompt: Lowered, table: AtomTable) -> NDArray[np.bool_]:
    """Where a prompt's visual tokens are, (T,)."""
    return np.repeat(prompt.atoms_A < 0, table.sizes(prompt.atoms_A))
