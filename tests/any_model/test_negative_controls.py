"""What each mistake costs that a tree could make: the comparison with a model's own forward sees every one of them.

Without these, a test that the tree equals the forward could pass for a model that does not look.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from any_model.grids import FEW, load, prompt

from longva_model.backends import lowering
from longva_model.engine import chunks
from longva_model.engine.atoms import PrefixTree, Series
from longva_model.engine.engine import EngineOptions, TreeEngine
from longva_model.frames.embeddings import FrameEmbeddings
from longva_model.prompts.prompting import Prompt
from vniah.contract.requests import Clip, Request, Target

COST = 1e-2


def difference(backend: Any, prompts: Sequence[Prompt], chunk_tokens: int = 8192) -> float:
    """The largest difference of a log-probability between the tree and the model's own forward."""
    engine = TreeEngine(backend, FrameEmbeddings(backend), EngineOptions(chunk_tokens=chunk_tokens))
    worst = 0.0
    with torch.inference_mode():
        for prompt, result in zip(prompts, engine.run(prompts), strict=True):
            leaf = prompt.request.leaf
            assert isinstance(leaf, Target)
            ids = backend.token_ids(leaf.text)
            own_LV = backend.reference(prompt, ids[:-1]).log_softmax(-1)
            wanted = own_LV[range(len(ids)), ids]
            worst = max(worst, float((torch.tensor(result.answer_logprobs) - wanted).abs().max()))
    return worst


def cells(backend: Any) -> list[Prompt]:
    return [prompt(backend, *cell) for cell in FEW]


def test_units_told_by_their_place(folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    backend = load(folder_of("qwen3_vl"), "qwen3_vl")
    assert difference(backend, cells(backend)) < COST / 100

    def by_place(places: Any, visual: Any, table: Any, *, alone: bool) -> Any:
        rows = []
        for place, frames in enumerate(places.frames_Uf.tolist()):
            pair = [(visual.sources[visual.source_F[i]], int(visual.index_F[i])) for i in frames]
            source = lowering.OneUnit(pair)
            source.fingerprint = f"place {place}"
            series = replace(places.series, name=source.fingerprint, source=source)
            rows.append(table.codes(series, 0, 1))
        return np.concatenate(rows)

    monkeypatch.setattr(lowering, "_codes", by_place)
    assert difference(backend, cells(backend)) > COST


def test_positions_that_merely_run_on(folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    backend = load(folder_of("qwen2_5_vl"), "qwen2_5_vl")
    lower = backend.lower
    monkeypatch.setattr(backend, "lower", lambda *given: replace(lower(*given), positions_PT=None))
    assert difference(backend, cells(backend)) > COST


def test_positions_left_out_of_what_prefixes_share(
    folder_of: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One clip at 1 and at 2 frames a second: the same ids and units, at other times."""
    backend = load(folder_of("qwen2_5_vl"), "qwen2_5_vl")
    first = prompt(backend, 6, 40, "animal")
    turn, *rest = first.request.segments
    faster = replace(first, request=Request((turn, Clip(fps=2.0), *rest), first.request.leaf))
    assert difference(backend, [first, faster]) < COST / 100
    monkeypatch.setattr(PrefixTree, "_alike_positions", lambda *_: sys.maxsize)
    assert difference(backend, [first, faster]) > COST


def test_levels_of_features_dropped(folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    backend = load(folder_of("qwen3_vl"), "qwen3_vl")
    decode = backend.family.decode

    def shallow(chunk: Any, embeds_TD: torch.Tensor, given: Any) -> torch.Tensor:
        features = None if chunk.features_kVD is None else chunk.features_kVD[:1]
        found: torch.Tensor = decode(replace(chunk, features_kVD=features), embeds_TD, given)
        return found

    monkeypatch.setattr(backend.family, "decode", shallow)
    assert difference(backend, cells(backend)) > COST


def test_token_types_of_the_chunk_alone(folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    backend = load(folder_of("gemma3"), "gemma3")
    assert difference(backend, cells(backend), chunk_tokens=37) < COST / 100
    types = chunks._types

    def shifted(table: Any, prompt: Any, start: int, visual_T: Any) -> Any:
        own_S = types(table, prompt, start, visual_T)
        return np.concatenate([own_S[start:], np.zeros(start, np.uint8)])

    monkeypatch.setattr(chunks, "_types", shifted)
    assert difference(backend, cells(backend), chunk_tokens=37) > COST


def test_a_tower_that_looks_at_other_units(folder_of: Callable[[str], Path]) -> None:
    """As the model would have it whose tower attends across the clip: what a unit is depends on who is beside it."""
    backend = load(folder_of("qwen2_5_vl"), "qwen2_5_vl")
    tower = backend.model.model.visual
    handle = tower.merger.register_forward_hook(lambda _module, _given, out_TD: out_TD + 0.2 * out_TD.mean(0))
    assert difference(backend, cells(backend)) > COST
    with pytest.raises(ValueError, match="own forward"):
        backend.check()
    handle.remove()


def test_series_are_told_by_what_they_show() -> None:
    same = {"fitted": "28x28", "tokens": 4, "placeholder": 9}
    assert Series(name="a", source=object(), **same) == Series(name="a", source=object(), **same)  # type: ignore[arg-type]
    assert Series(name="a", **same) != Series(name="b", **same)  # type: ignore[arg-type]
