"""What a decoder keeps of a prompt, marked where branches begin and rewound to there.

Walking a tree depth-first needs just this: extend along a branch, score its leaves, rewind to where the
branch began. Keys and values are rows, so a rewind forgets the last of them; a recurrent state has no rows
(each token is folded into it), so a mark takes a copy of it. Windows of sliding and chunked attention are
left to the mask: every row is kept, for a rewind may need those that have left the window.

Buffers of rows are made once, at the length that the tree is known to need; appending a chunk copies that
chunk and nothing else. (Growing leaves an allocator holes as large as the cache.)

Shapes: B batch (1 in the tree), K key/value heads, S capacity, T new tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any
from weakref import WeakSet

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, LinearAttentionLayer

from longva_model.attention.past import with_past
from longva_model.engine.kv_blocks import BlockRows, KVStore

# What is left to do with a model that is refused.
BY_ITS_OWN_CODE = (
    "Measure it by its own code: vniah_generate with lmms-eval's model, or a function given to vniah.evaluate"
)
# The types of layers whose keys and values are rows, however much of them a mask lets through.
_ROWS = ("full_attention", "sliding_attention", "chunked_attention")
_RECURRENT = ("linear_attention", "conv")
_BOTH = ("hybrid", "hybrid_sliding")
# Layers that read another layer's rows, or that have no attention: transformers before 5.24 has none for them, or
# recurrent ones that stay empty.
_NOTHING = ("dummy", "moe", "mlp")

# A copy of a layer's recurrent state; None where no token has been seen, or nothing but rows is kept.
Snapshot = dict[str, dict[int, Any]] | None


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
            CroppableLayer.lazy_initialization(self, key_states, value_states)
        end = self.length + key_states.shape[-2]
        self._reserve(end)
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def crop_to(self, length: int) -> None:
        assert 0 <= length <= self.length, f"cannot crop {self.length} rows to {length}"
        self.length = length

    def snapshot(self) -> Snapshot:
        return None

    def rewind(self, length: int, snapshot: Snapshot) -> None:
        self.crop_to(length)

    def tensors(self) -> Iterable[torch.Tensor]:
        return (self.keys, self.values) if self.is_initialized else ()

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


class BlockedLayer(CroppableLayer):
    """One layer's keys and values in blocks (``kv_blocks.py``): attention is handed the new ones with their past."""

    def __init__(self, store: KVStore, max_length: int | None = None) -> None:
        super().__init__(max_length)
        self.rows = BlockRows(store, max_length)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (B, K, T, D) keys and values; returns them as they are kept, the keys with the rows before them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self.rows.write(self.length, key_states, value_states)
        if self.length:
            keys = with_past(keys, self.rows.past(self.length))
        self.length += key_states.shape[-2]
        return keys, values

    def tensors(self) -> Iterable[torch.Tensor]:
        return self.rows.tensors()


class RecurrentLayer(LinearAttentionLayer):
    """One layer's convolution and recurrent states, which each token overwrites.

    Cutting a prompt into forwards elsewhere changes no more than rounding, where a decoder goes on from these states.
    Those of Jamba and Zamba do so a token at a time only, and begin anew in a forward of several tokens, with any
    cache: comparing with a plain forward finds them.
    """

    _STATE = ("conv_states", "recurrent_states")
    _ABOUT = ("is_conv_states_initialized", "is_recurrent_states_initialized", "has_previous_state", "conv_kernel_size")

    def snapshot(self) -> Snapshot:
        if not any(self.has_previous_state.values()):
            return None
        return _copied({name: getattr(self, name) for name in self._STATE + self._ABOUT})

    def rewind(self, length: int, snapshot: Snapshot) -> None:
        """Put a snapshot back, which stays good: decoders write to the layer's own tensors in place."""
        if snapshot is None:
            LinearAttentionLayer.__init__(self, self.number_of_states)
            return
        for name, states in _copied(snapshot).items():
            setattr(self, name, states)

    def tensors(self) -> Iterable[torch.Tensor]:
        return _tensors({name: getattr(self, name) for name in self._STATE})


class HybridLayer(RecurrentLayer, CroppableLayer):
    """A layer with attention and a recurrent state side by side."""

    is_compileable = False
    is_croppable = False

    def __init__(self, number_of_states: int = 1, max_length: int | None = None) -> None:
        CroppableLayer.__init__(self, max_length)
        LinearAttentionLayer.__init__(self, number_of_states)

    def rewind(self, length: int, snapshot: Snapshot) -> None:
        RecurrentLayer.rewind(self, length, snapshot)
        self.crop_to(length)

    def tensors(self) -> Iterable[torch.Tensor]:
        return (*RecurrentLayer.tensors(self), *CroppableLayer.tensors(self))

    def reset(self) -> None:
        self.rewind(0, None)


@dataclass(frozen=True, eq=False)
class Mark:
    """A place in a prompt, made by a cache's ``mark`` and of use to its ``rewind``.

    Attributes:
        length: tokens before it.
        snapshots: a layer's each; released with the mark.
    """

    length: int
    snapshots: tuple[Snapshot, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes held by the snapshots; no two marks share one."""
        return sum(x.nbytes for snapshot in self.snapshots if snapshot for x in _tensors(snapshot))


class CroppableCache(Cache):
    """A transformers cache that goes back to where it was.

    A mark of a decoder with attention alone is a number. With recurrent layers it holds copies of their states on
    their device, as much as these layers hold themselves whatever the prompt's length: in fp32 for Qwen3-Next 80B
    (36 such layers of 32 heads of 128 x 128) 75 MiB a mark. So mark where a branch begins, and drop marks that no
    branch goes back to.

    Args:
        layers: a decoder's, or how many where all have attention alone.
        max_length: rows that will be needed at most; past it, or without it, buffers grow by an eighth at least.
        store: of layers that keep their rows in blocks.
    """

    def __init__(
        self, layers: int | Sequence[Any], max_length: int | None = None, store: KVStore | None = None
    ) -> None:
        if isinstance(layers, int):
            layers = [CroppableLayer(max_length) for _ in range(layers)]
        super().__init__(layers=list(layers))
        self._store = store
        self._marks: WeakSet[Mark] = WeakSet()
        # The mark at which the cache stood last; it still does while it has no more tokens.
        self._last: Mark | None = None

    @property
    def length(self) -> int:
        """Tokens behind the walk."""
        return int(self.get_seq_length())

    @property
    def num_bytes(self) -> int:
        """Bytes held by buffers, states, and the marks that somebody holds."""
        layers = sum(x.nbytes for layer in self._kept() for x in layer.tensors())
        return layers + sum(mark.num_bytes for mark in self._marks)

    def _kept(self) -> list[Any]:
        """The layers that keep anything."""
        return [layer for layer in self.layers if isinstance(layer, (CroppableLayer, RecurrentLayer))]

    @property
    def is_rows(self) -> bool:
        """Whether it can be cut anywhere, for no layer keeps a recurrent state."""
        return not any(isinstance(layer, RecurrentLayer) for layer in self.layers)

    def mark(self) -> Mark:
        """Here, to be rewound to as often as one likes, until a rewind to an earlier mark.

        Marks at one place are one mark, and cost a snapshot once.

        Raises:
            ValueError: the decoder's attention has not read the blocks behind its new tokens.
        """
        if self._store is not None:
            self._store.check_read()
        if self._last is None or self._last.length != self.length:
            self._last = Mark(self.length, tuple(layer.snapshot() for layer in self._kept()))
            self._marks.add(self._last)
        return self._last

    def rewind(self, mark: Mark) -> None:
        """Forget every token behind a mark; later marks are of no use any more."""
        assert mark in self._marks, f"no mark of this cache, or one that was left: {mark.length} tokens"
        if self._store is not None:
            self._store.forget()
        # Some decoders add layers in their first forward; what is not in the mark had seen nothing.
        for layer, snapshot in zip_longest(self._kept(), mark.snapshots):
            layer.rewind(mark.length, snapshot)
        self._last = mark
        self._forget_marks()

    def crop_to(self, length: int) -> None:
        """Forget every row from ``length`` on, in every layer; not for recurrent layers, which have no rows."""
        assert self.is_rows, "rewind to a mark instead"
        if self._store is not None:
            self._store.forget()
        for layer in self._kept():
            layer.crop_to(length)
        self._last = None
        self._forget_marks()

    def _forget_marks(self) -> None:
        """Those behind the end: other tokens may come to stand before them."""
        for mark in [mark for mark in self._marks if mark.length > self.length]:
            self._marks.discard(mark)


def new_state(
    config: Any, max_length: int | None = None, *, kv: str = "device", kv_block: int | None = None
) -> CroppableCache:
    """What a decoder keeps of a prompt, as yet of none.

    Args:
        config: the decoder's, or a whole model's that has one.
        max_length: tokens that will be needed at most (see ``CroppableCache``).
        kv: where and how keys and values are kept: "device", "host" or "fp8" (``kv_blocks.py``).
        kv_block: rows of a block. On the device, None is no blocks.

    Raises:
        ValueError: layers of a type that cannot be rewound, or none that counts tokens; or, in blocks, any that do not
            keep rows that all later tokens see.
    """
    from transformers.cache_utils import get_layer_types_and_kwargs

    config = config.get_text_config(decoder=True)
    # transformers tells by itself which layers read another one's rows.
    kinds = get_layer_types_and_kwargs(config)[0]
    states = getattr(config, "number_of_conv_states", 1)
    strange = sorted(set(kinds) - {*_ROWS, *_RECURRENT, *_BOTH, *_NOTHING})
    why = f"it has layers of {', '.join(strange)}" if strange else "no layer of it has attention"
    if strange or not set(kinds) & {*_ROWS, *_BOTH}:
        raise ValueError(f"{config.model_type} cannot be taken back to a shared prefix: {why}. {BY_ITS_OWN_CODE}")
    if kv == "device" and kv_block is None:
        return CroppableCache([_layer(kind, states, max_length) for kind in kinds])
    store = KVStore(kv, kv_block)
    if other := sorted(set(kinds) - {"full_attention"}):
        raise ValueError(
            f"kv={kv} keeps rows that every later token sees, and {config.model_type} has layers of "
            f"{', '.join(other)}; use kv=device"
        )
    return CroppableCache([BlockedLayer(store, max_length) for _ in kinds], store=store)


def _layer(kind: str, states: int, max_length: int | None) -> Any:
    if kind in _ROWS:
        return CroppableLayer(max_length)
    if kind in _BOTH:
        return HybridLayer(states, max_length)
    if kind in _NOTHING:
        from transformers import cache_utils

        empty = getattr(cache_utils, "DummyLayer", LinearAttentionLayer)
        return empty()
    return RecurrentLayer(states)


def _copied(states: dict[str, dict[int, Any]]) -> dict[str, dict[int, Any]]:
    return {
        name: {index: x.clone() if isinstance(x, torch.Tensor) else x for index, x in of.items()}
        for name, of in states.items()
    }


def _tensors(states: dict[str, dict[int, Any]]) -> list[torch.Tensor]:
    return [x for of in states.values() for x in of.values() if isinstance(x, torch.Tensor)]
