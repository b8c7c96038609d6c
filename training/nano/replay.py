"""Text between the pictures: keeps what the nano language model has learnt while it is aligned.

Alignment on pictures alone bends text retrieval, at nano scale from 0.98 to 0.2-0.4 within some 1,400 steps. The
original's instruction data has its text-only conversations too. No more tokens than the text stages had.

Shape legend: B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vniah.training.nano.text_tasks import LengthPhase, TextTasks

# Tokens a batch has, about; the shortest rows.
_BATCH_TOKENS = 4096
_SHORTEST = 128
_MOST_ROWS = 24


def lengths_up_to(length: int) -> list[int]:
    """Row lengths to draw from: ``length``, and its halves down to 128."""
    lengths = [length]
    while lengths[-1] // 2 >= _SHORTEST:
        lengths.append(lengths[-1] // 2)
    return lengths


def with_text(
    make: Callable[[int], dict[str, Any]], tokenizer: Any, *, share: float, length: int, seed: int
) -> Callable[[int], dict[str, Any]]:
    """Batches by step: text alone in ``share`` of the steps, else ``make(step)``.

    Args:
        make: batches of pictures.
        tokenizer: the nano tokenizer.
        share: of steps.
        length: tokens of a text row at most.
        seed: every batch is drawn from (seed, step).

    Returns:
        step -> batch; one of text has ``input_ids``, ``labels`` and ``attention_mask`` (B, T) and no pixels.
    """
    tasks = [
        TextTasks(
            tokenizer,
            [LengthPhase(start=0, length=one, batch=min(_MOST_ROWS, max(1, _BATCH_TOKENS // one)))],
            seed=seed + 20,
            repeat_share=0.2,
            number_share=0.3,
        )
        for one in lengths_up_to(length)
    ]

    def batch(step: int) -> dict[str, Any]:
        rng = np.random.default_rng((seed, step, 7))
        if rng.random() >= share:
            return make(step)
        found: dict[str, Any] = dict(tasks[rng.integers(len(tasks))].batch(step))
        return {**found, "attention_mask": np.ones_like(found["input_ids"])}

    return batch
