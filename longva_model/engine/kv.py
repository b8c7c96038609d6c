"""A KV cache that is appended to and cropped back: one contiguous buffer a layer.

Walking a tree depth-first needs just this: extend along a branch, score its leaves, crop to where the
branch began. Buffers are made once, at the length that the tree is known to need; appending a chunk copies
that chunk and nothing else. (Growing leaves an allocator holes as large as the cache.)

Shapes: B batch (1 in the tree), K key/value heads, S capacity, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class CroppableLayer(CacheLayerMixin):
    """One layer's keys and values, the first ``length`` rows of preallocated (B, K, S, D) buffers."""

    is_compileable = False
    is_croppable = True
    is_sliding = False

    def __init__(self, max_length: int | None = None, **kwargs: Any) -> None:
        super().__init__()
        self.max_length = max_length
        self.length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor | None = None) -> None:
        """Buffers without room, as yet: heads of values may be of another size than heads of keys."""
        like_values = key_states if value_states is None else value_states
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[:, :, :0], like_values[:, :, :0]
        self.is_initialized = True

    def _reserve(self, needed: int) -> None:
        """Make room for ``needed`` rows, keeping the first ``length``."""
        capacity = self.keys.shape[-2]
        if needed <= capacity:
            return
        planned = self.max_length is not None and needed <= self.max_length
        room = self.max_length if planned else needed + max(capacity // 8, 256)
        for name in ("keys", "values"):
            old_BKSD = getattr(self, name)
            new_BKSD = old_BKSD.new_empty((*old_BKSD.shape[:2], room, old_BKSD.shape[3]))
            new_BKSD[:, :, : self.length] = old_BKSD[:, :, : self.length]
            setattr(self, name, new_BKSD)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (B, K, T, D) keys and values; returns views of all rows so far, (B, K, length, D)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[-2]
        self._reserve(end)
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def crop_to(self, length: int) -> None:
        assert 0 <= length <= self.length, f"cannot crop {self.length} rows to {length}"
        self.length = length

    def get_seq_length(self, *args: Any) -> int:
        return self.length

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        # transformers before 5.20 hands over cache positions, later ones their number.
        new = query_length if isinstance(query_length, int) else query_length.shape[0]
        return self.length + new, 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # transformers' older name

    def reset(self) -> None:
        self.length = 0


class CroppableCache(Cache):
    """A transformers cache of ``CroppableLayer``s.

    Args:
        num_layers: decoder layers.
        max_length: rows that will be needed at most; past it, or without it, buffers grow by an eighth at least.
    """

    layers: list[CroppableLayer]

    def __init__(self, num_layers: int, max_length: int | None = None) -> None:
        super().__init__(layers=[CroppableLayer(max_length) for _ in range(num_layers)])

    @property
    def length(self) -> int:
        return self.layers[0].length

    def mark(self) -> int:
        """Where the cache ends now, for ``rewind``."""
        return self.length

    def rewind(self, mark: int) -> None:
        """Back to a mark."""
        self.crop_to(mark)

    def crop_to(self, length: int) -> None:
        """Forget every row from ``length`` on, in every layer."""
        for layer in self.layers:
            layer.crop_to(length)

    @property
    def num_bytes(self) -> int:
        """Bytes held by the buffers."""
        return sum(x.nbytes for layer in self.layers if layer.is_initialized for x in (layer.keys, layer.values))
