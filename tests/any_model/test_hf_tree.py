"""A grid through the engine, for every family, is what each model's own forward says of each cell.

The other side knows nothing of ours: the model's own processor on the real clip, and one plain forward.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from any_model.families import FAMILIES
from any_model.grids import CELLS, FEW, NEEDLES, RUN, clip, load, prompt
from any_model.own_forward import own_inputs, own_logprobs

from longva_model.engine.engine import EngineOptions, TreeEngine
from longva_model.engine.steps import steps
from longva_model.frames.embeddings import FrameEmbeddings

# Rounding of fp32 in models whose weights are loud; a mistake costs a hundred times as much.
ROUNDING = 2e-4


# The whole grid, every day: positions in seconds, levels of features, one axis. Elsewhere a few cells.
WHOLE = ("qwen2_5_vl", "qwen3_vl", "internvl")
# Much like another family, or seconds long.
LIKE_OTHERS = ("qwen3_vl_moe", "glm4v_moe", "llava_next_video", "video_llava", "gemma4", "perception_lm")


def slow(families: Sequence[str]) -> list[Any]:
    return [pytest.param(family, marks=pytest.mark.slow) for family in families]


@pytest.mark.parametrize("family", [*WHOLE, *slow([family for family in RUN if family not in WHOLE])])
def test_a_grid_is_what_the_models_own_forward_says(family: str, folder_of: Callable[[str], Path]) -> None:
    compare(folder_of(family), family, CELLS, (8192, 37))


@pytest.mark.parametrize("family", [family for family in RUN if family not in (*WHOLE, *LIKE_OTHERS)])
def test_a_few_cells_are_what_the_models_own_forward_says(family: str, folder_of: Callable[[str], Path]) -> None:
    compare(folder_of(family), family, FEW, (37,))


def compare(folder: Path, family: str, cells: Sequence[tuple[int, int | None, str]], chunks: Sequence[int]) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    backend = load(folder, family)
    assert backend.about()["largest_difference_from_own_forward"] < ROUNDING
    own = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    presentation = FAMILIES[family].presentation
    prompts = [prompt(backend, *cell) for cell in cells]
    wanted = []
    for cell in cells:
        question, answer = NEEDLES[cell[2]]
        logprobs_LV, ids = own_logprobs(own, processor, clip(*cell), question, answer, presentation)
        wanted.append((logprobs_LV, ids, backend.token_ids(answer)))
    worst, fed = 0.0, []
    for chunk_tokens in chunks:
        frames = FrameEmbeddings(backend)
        engine = TreeEngine(backend, frames, EngineOptions(chunk_tokens=chunk_tokens))
        batch = engine.lower(prompts)
        told: list[int] = []
        for place, result in enumerate(engine.run(batch, on_flops=told.append)):
            logprobs_LV, ids, answer_ids = wanted[place]
            assert result.answer_ids == answer_ids
            assert result.prompt_tokens == len(ids)
            rows = range(len(answer_ids))
            difference = np.abs(np.array(result.answer_logprobs) - logprobs_LV[rows, answer_ids]).max()
            worst = max(worst, float(difference))
            best_L = logprobs_LV.argmax(-1)
            gaps_L = np.sort(logprobs_LV, -1)[:, -1] - np.sort(logprobs_LV, -1)[:, -2]
            assert all(
                one == other or gap < ROUNDING
                for one, other, gap in zip(result.predicted_ids, best_L, gaps_L, strict=True)
            )
        # Ids are the processor's, token for token.
        for lowered, (_, ids, _) in zip(batch.lowered, wanted, strict=True):
            table = batch.table
            assert table.ids(lowered.atoms_A).repeat(table.sizes(lowered.atoms_A)).tolist() == ids
        units = {
            (s.name, s.fitted, unit)
            for low in batch.lowered
            for s, a, b in batch.table.runs(low.atoms_A)
            if s.source is not None
            for unit in range(a, b)
        }
        assert frames.frames_encoded == len(units)
        assert sum(told) == engine.planned_flops(batch)
        fed.append(sum(step.new for step in steps(batch.tree)))
    print(
        f"{family}: {worst:.1e}, {fed[0]} of {sum(low.tokens for low in batch.lowered)} tokens fed, {len(units)} units"
    )
    assert worst < ROUNDING
    assert fed[0] < sum(low.tokens for low in batch.lowered)
    # Cells are told apart, or their equality would say nothing.
    first = [logprobs_LV[0] for logprobs_LV, _, _ in wanted[:: len(NEEDLES)]]
    assert min(np.abs(a - b).max() for i, a in enumerate(first) for b in first[:i]) > 10 * ROUNDING


def test_a_processor_that_tells_no_pixels_of_frames_is_refused(folder_of: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match="tells no pixels of single frames") as caught:
        load(folder_of("nemotron_h_omni"), "nemotron_h_omni")
    assert "\n" not in str(caught.value)


def test_positions_are_those_of_the_whole_prompt(folder_of: Callable[[str], Path]) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    family = "qwen2_5_vl"
    folder = folder_of(family)
    backend = load(folder, family)
    own = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    engine = TreeEngine(backend, FrameEmbeddings(backend))
    batch = engine.lower([prompt(backend, *cell) for cell in CELLS])
    for cell, lowered in zip(CELLS, batch.lowered, strict=True):
        inputs = own_inputs(processor, clip(*cell), NEEDLES[cell[2]][0], "video")
        names = ("input_ids", "mm_token_type_ids", "video_grid_thw", "second_per_grid_ts")
        wanted_P1T, _ = own.model.get_rope_index(**{name: inputs[name] for name in names if name in inputs})
        assert np.array_equal(lowered.positions(0, lowered.tokens), wanted_P1T[:, 0].numpy())


def test_positions_that_do_not_run_on_are_each_questions_own(
    folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a model that places the text behind a clip by more than where the clip ends."""
    backend = load(folder_of("qwen2_5_vl"), "qwen2_5_vl")
    own = backend.renderer._positions

    @functools.wraps(own)
    def odd(**given: Any) -> Any:
        positions_P1T, deltas = own(**given)
        length = positions_P1T.shape[-1]
        return positions_P1T + torch.arange(length) // (length - 3), deltas

    monkeypatch.setattr(backend.renderer, "_positions", odd)
    engine = TreeEngine(backend, FrameEmbeddings(backend))
    for lowered in engine.lower([prompt(backend, 6, 40, needle) for needle in NEEDLES]).lowered:
        assert lowered.positions_PT is not None and lowered.positions_PT.shape[1] == lowered.tokens + 1
