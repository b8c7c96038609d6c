"""Beam search of a generation leaf, by transformers' own ``generate``.

Shapes: T prompt tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessorList

from longva_model.backends.backend import Backend
from longva_model.engine.finite import NotFiniteError
from longva_model.engine.leaves import cut_at_stop
from vniah.contract.requests import Generate


def beam_search(
    leaf: Generate, backend: Backend, prompt_TD: torch.Tensor, prompt_ids: Sequence[int]
) -> tuple[str, list[int]]:
    """The best of ``num_beams`` beams.

    Args:
        prompt_TD: embeddings of the whole prompt.
        prompt_ids: T ids, for a repetition penalty; any id of the prompt where a visual stands.

    Returns:
        The text, cut at a stop string, and the ids without the end token.

    Raises:
        NotFiniteError: NaN logits, or infinite ones.
    """
    options: dict[str, Any] = {"do_sample": leaf.temperature > 0, "repetition_penalty": leaf.repetition_penalty}
    if leaf.temperature > 0:
        options |= {"temperature": leaf.temperature, "top_p": leaf.top_p, "top_k": leaf.top_k}
        torch.manual_seed(leaf.seed)
    if leaf.min_new_tokens:
        options["min_new_tokens"] = leaf.min_new_tokens
    end = list(backend.eos_ids)
    ids_BT = torch.tensor([list(prompt_ids)], dtype=torch.long, device=prompt_TD.device)
    out = backend.model.generate(
        inputs=ids_BT,
        inputs_embeds=prompt_TD[None],
        attention_mask=torch.ones_like(ids_BT),
        max_new_tokens=leaf.max_new_tokens,
        num_beams=leaf.num_beams,
        eos_token_id=end or None,
        pad_token_id=end[0] if end else 0,
        logits_processor=LogitsProcessorList([_refuse_nan]),
        **options,
    )
    ids: list[int] = out[0, ids_BT.shape[1] :].tolist()
    ids = ids[: next((place for place, token in enumerate(ids) if token in end), len(ids))]
    return cut_at_stop(backend.decode(ids), leaf.stop)[0], ids


def _refuse_nan(ids_BT: torch.Tensor, scores_BV: torch.Tensor) -> torch.Tensor:
    """Log-probabilities as they are; NaN, and of infinite logits too, are refused. (Other processors make -inf.)"""
    if bool(scores_BV.isnan().any()):
        raise NotFiniteError
    return scores_BV
