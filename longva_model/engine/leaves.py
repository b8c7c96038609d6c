"""Leaves: scoring a forced answer from its logits, generating one token at a time, and beam search.

Shapes: T prompt tokens, D hidden size, L answer tokens, V vocabulary, B beams.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from longva_model.backends.backend import Backend
from longva_model.engine.logits import NotFiniteError, is_finite
from vniah.contract.requests import Generate

# In place of a token where logits are not finite.
_NO_TOKEN = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafResult:
    """What a leaf gave. For a target: argmax ids and log-probabilities at its positions; else the text."""

    text: str
    predicted_ids: list[int]
    answer_ids: list[int]
    answer_logprobs: list[float]
    prompt_tokens: int

    @property
    def logprob(self) -> float:
        return float(sum(self.answer_logprobs))

    @property
    def is_greedy(self) -> bool:
        """Every answer token is the argmax (paper section 4)."""
        return bool(self.answer_ids) and self.predicted_ids == self.answer_ids

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def score_answer(logits_LV: torch.Tensor, answer_ids: Sequence[int]) -> tuple[list[int], list[float]]:
    """Argmax ids and the answer's log-probabilities, from the logits that predict each answer token.

    Args:
        logits_LV: row i predicts ``answer_ids[i]``.

    Raises:
        NotFiniteError: NaN or infinite logits.
    """
    assert logits_LV.shape[0] == len(answer_ids), (logits_LV.shape, len(answer_ids))
    if not is_finite(logits_LV):
        raise NotFiniteError
    logprobs_LV = logits_LV.float().log_softmax(dim=-1)
    wanted = torch.tensor(list(answer_ids), device=logits_LV.device)
    chosen = logprobs_LV.gather(1, wanted[:, None])[:, 0]
    return logits_LV.argmax(dim=-1).tolist(), chosen.tolist()


def cut_at_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop string, and whether one was found."""
    places = [place for place in (text.find(word) for word in stop if word) if place >= 0]
    return (text[: min(places)], True) if places else (text, False)


def generate_ids(
    leaf: Generate,
    first_logits_V: torch.Tensor,
    step: Callable[[int], torch.Tensor],
    backend: Backend,
    on_token: Callable[[str], None] | None = None,
    prompt_ids: Collection[int] = (),
    agree: Callable[[int], int] = lambda token: token,
) -> tuple[str, list[int]]:
    """Generate up to ``max_new_tokens``: greedy, or sampled with the leaf's seed.

    Args:
        first_logits_V: logits at the prompt's last position.
        step: feeds one token and returns the logits after it.
        backend: decodes, and says which ids end an answer.
        on_token: called with the text so far after each token (streaming).
        prompt_ids: ids that occur in the prompt, in any order: what a repetition penalty counts beside the new ones.
        agree: the token that all processes take, given this one's.

    Returns:
        The text, cut at a stop string, and the ids without the end token.

    Raises:
        NotFiniteError: NaN or infinite logits.
    """
    device = first_logits_V.device
    before = list(prompt_ids) if leaf.repetition_penalty != 1.0 else []
    # transformers' own processors, in the order in which its ``generate`` applies them.
    chain = LogitsProcessorList()
    if leaf.repetition_penalty != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(leaf.repetition_penalty))
    if leaf.min_new_tokens > 0 and (end := list(backend.eos_ids)):
        chain.append(MinNewTokensLengthLogitsProcessor(len(before), leaf.min_new_tokens, end, device=str(device)))
    if leaf.temperature > 0:
        chain.append(TemperatureLogitsWarper(leaf.temperature))
        if leaf.top_k > 0:
            chain.append(TopKLogitsWarper(leaf.top_k))
        if leaf.top_p < 1.0:
            chain.append(TopPLogitsWarper(leaf.top_p))
    chooser = torch.Generator(device="cpu").manual_seed(leaf.seed)
    ids: list[int] = []
    logits_V = first_logits_V
    while len(ids) < leaf.max_new_tokens:
        so_far = torch.tensor([before + ids], dtype=torch.long, device=device)
        scores_V = chain(so_far, logits_V.float()[None])[0]
        if not is_finite(logits_V):
            token = _NO_TOKEN
        elif leaf.temperature > 0:
            token = int(torch.multinomial(scores_V.softmax(-1).cpu(), 1, generator=chooser))
        else:
            token = int(scores_V.argmax())
        token = agree(token)
        if token == _NO_TOKEN:
            raise NotFiniteError(ids)
        if token in backend.eos_ids:
            break
        ids.append(token)
        text, stopped = cut_at_stop(backend.decode(ids), leaf.stop)
        if on_token is not None:
            on_token(text)
        if stopped:
            return text, ids
        if len(ids) < leaf.max_new_tokens:
            logits_V = step(token)
    return cut_at_stop(backend.decode(ids), leaf.stop)[0], ids


def beam_search(
    leaf: Generate, backend: Backend, prompt_TD: torch.Tensor, prompt_ids: Sequence[int]
) -> tuple[str, list[int]]:
    """The best of ``num_beams`` beams, by transformers' own ``generate``.

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
