"""The croppable cache: what was appended is what is read, cropping forgets, buffers are made once."""

from __future__ import annotations

import pytest
import torch

from longva_model.engine.kv import CroppableCache


def rows(start: int, stop: int) -> torch.Tensor:
    """(1, 2, T, 4), each row its position."""
    return torch.arange(start, stop, dtype=torch.float32)[None, None, :, None].expand(1, 2, -1, 4)


def append(cache: CroppableCache, start: int, stop: int) -> list[torch.Tensor]:
    return [cache.update(rows(start, stop), -rows(start, stop), layer)[0] for layer in range(2)]


def test_rows_come_back_in_order_after_crops() -> None:
    cache = CroppableCache(2, 600)
    append(cache, 0, 5)
    append(cache, 5, 300)
    cache.crop_to(4)
    for keys in append(cache, 10, 12):
        assert keys[0, 0, :, 0].tolist() == [0, 1, 2, 3, 10, 11]
    assert cache.length == 6
    for length in (-1, 7):
        with pytest.raises(AssertionError, match=f"cannot crop 6 rows to {length}"):
            cache.crop_to(length)
    cache.crop_to(0)
    assert cache.length == cache.get_seq_length() == 0 and cache.num_bytes == 2 * 2 * 2 * 600 * 4 * 4


def test_buffers_of_a_known_length_are_made_once_and_others_grow() -> None:
    known, unknown = CroppableCache(2, 1000), CroppableCache(2)
    for start in range(0, 1000, 100):
        append(known, start, start + 100)
        append(unknown, start, start + 100)
        assert known.num_bytes == 2 * 2 * 2 * 1000 * 4 * 4
    assert unknown.num_bytes >= known.num_bytes
    # Beyond what was planned an eighth more, and not twice as much.
    long = CroppableCache(2, 8000)
    append(long, 0, 8000)
    append(long, 8000, 8001)
    assert long.num_bytes == 2 * 2 * 2 * 9001 * 4 * 4
    for keys in append(known, 1000, 1001):
        assert keys[0, 0, :, 0].tolist() == list(range(1001))


def test_values_may_be_of_another_size_than_keys() -> None:
    cache = CroppableCache(1, 20)
    for start in (0, 3):
        keys, values = cache.update(rows(start, start + 3), rows(start, start + 3)[..., :2], 0)
    assert keys.shape == (1, 2, 6, 4) and values.shape == (1, 2, 6, 2)
    assert values[0, 0, :, 0].tolist() == list(range(6))
