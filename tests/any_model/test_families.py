"""Every family's tiny checkpoint loads by the Auto classes, runs its own forward and sees each frame."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from any_model.families import CORE, FAMILIES
from any_model.own_forward import own_inputs, own_logits, own_logprobs

QUESTION, ANSWER = "What is the animal in the frame that does not belong to the clip?", "Teddy bear."


def load(folder: Path) -> tuple[Any, Any]:
    """(model, processor), from the folder alone."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, found = AutoModelForImageTextToText.from_pretrained(
        folder, trust_remote_code=False, use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    assert not found["missing_keys"] and not found["unexpected_keys"]
    return model.float().eval(), AutoProcessor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


@pytest.fixture(
    scope="module",
    params=[*CORE, *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name not in CORE)],
)
def family(request: pytest.FixtureRequest, folder_of: Callable[[str], Path]) -> tuple[str, Any, Any]:
    return request.param, *load(folder_of(request.param))


def clip(frames: int) -> np.ndarray:
    """(frames, 48, 64, 3) uint8: coloured squares."""
    squares_NHWC = np.random.default_rng(0).integers(0, 256, (frames, 3, 4, 3), dtype=np.uint8)
    return squares_NHWC.repeat(16, axis=1).repeat(16, axis=2)


def test_folder_is_whole(family: tuple[str, Any, Any]) -> None:
    _name, model, processor = family
    assert Path(model.config._name_or_path, "model.safetensors").is_file()
    assert processor.chat_template
    merged = processor.tokenizer(ANSWER, add_special_tokens=False)["input_ids"]
    assert 1 < len(merged) < len(ANSWER), "several tokens, and fewer than letters"
    assert processor.tokenizer.decode(merged) == ANSWER


@pytest.mark.parametrize("frames", [6, 7])
def test_model_sees_each_frame(family: tuple[str, Any, Any], frames: int) -> None:
    name, model, processor = family
    presentation = FAMILIES[name].presentation
    shown_NHWC = clip(frames)
    own_LV, ids = own_logprobs(model, processor, shown_NHWC, QUESTION, ANSWER, presentation)
    assert np.isfinite(own_LV).all() and own_LV.shape[1] == model.config.get_text_config().vocab_size
    answer_ids = processor.tokenizer(ANSWER, add_special_tokens=False)["input_ids"]
    answer_L = own_LV[range(len(answer_ids)), answer_ids]
    for index in range(frames):
        other_NHWC = shown_NHWC.copy()
        other_NHWC[index] = 255 - other_NHWC[index]
        other_LV, other_ids = own_logprobs(model, processor, other_NHWC, QUESTION, ANSWER, presentation)
        assert other_ids == ids
        assert np.abs(other_LV[range(len(answer_ids)), answer_ids] - answer_L).max() > 1e-3, index


def test_each_run_says_the_same(family: tuple[str, Any, Any]) -> None:
    """Nothing of an earlier call stays: a longer clip between two equal ones changes nothing."""
    name, model, processor = family
    first, between, last = (
        own_logprobs(model, processor, clip(frames), QUESTION, ANSWER, FAMILIES[name].presentation)
        for frames in (5, 8, 5)
    )
    assert first[1] == last[1] != between[1]
    np.testing.assert_array_equal(first[0], last[0])


def test_rounding_stays_small(family: tuple[str, Any, Any]) -> None:
    """Loud, not chaotic: fp32 lies near fp64, so a tolerance of 1e-4 tells a wrong computation from rounding."""

    name, model, processor = family
    if name.startswith("nemotron_h_omni"):
        pytest.skip("its tower casts to the dtype of the config")
    asked = (clip(7), QUESTION, ANSWER, FAMILIES[name].presentation)
    own_LV, _ = own_logprobs(model, processor, *asked)
    exact = copy.deepcopy(model)
    exact.set_experts_implementation("eager")  # torch's grouped product has no fp64
    exact_LV, _ = own_logprobs(exact.double(), processor, *asked)
    likely = exact_LV > -12
    assert np.abs(own_LV - exact_LV)[likely].max() < 1e-4


def test_seeds_differ_and_repeat(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    for folder, seed in (("one", 0), ("same", 0), ("other", 1)):
        FAMILIES["qwen2_vl"].build(tmp_path / folder, seed)
    one, same, other = (load_file(tmp_path / folder / "model.safetensors") for folder in ("one", "same", "other"))
    assert all(one[name].equal(same[name]) for name in one)
    assert not any(one[name].equal(other[name]) for name in one)


def test_prompt_is_the_models_own(family: tuple[str, Any, Any]) -> None:
    name, _model, processor = family
    inputs = own_inputs(processor, clip(3), QUESTION, FAMILIES[name].presentation)
    assert QUESTION in processor.tokenizer.decode(inputs["input_ids"][0])
    bos = processor.tokenizer.bos_token_id
    if bos is not None:
        assert inputs["input_ids"][0].tolist().count(bos) == 1


# A prompt's beginning knows of its end in these. In "long_rope" it does where a cache is filled in steps.
LOOKS_AHEAD = {"molmo2", "nemotron_h_omni_pruned"}


def test_what_comes_later_changes_nothing_before(family: tuple[str, Any, Any]) -> None:
    """What sharing a prefix rests on, and what the refused families break."""
    name, model, processor = family
    shown_NHWC = clip(8)
    other_NHWC = shown_NHWC.copy()
    other_NHWC[-1] = 255 - other_NHWC[-1]
    one, other = (
        own_inputs(processor, frames_NHWC, QUESTION, FAMILIES[name].presentation)
        for frames_NHWC in (shown_NHWC, other_NHWC)
    )
    one_TV, other_TV = own_logits(model, one), own_logits(model, other)
    assert one_TV.shape == other_TV.shape
    difference_T = (one_TV - other_TV).abs().amax(1)
    assert float(difference_T.max()) > 1e-2
    if name in LOOKS_AHEAD:
        visual = one["input_ids"][0] == model.config.image_token_id
        behind = len(visual) - 1 - int(visual.nonzero()[-1])
        assert FAMILIES[name].refused
        assert float(difference_T[: -behind - 6].max()) > 1e-3, "before the last unit, which has 6 tokens at most"
    else:
        half = len(one_TV) // 2  # the last pair of frames starts behind it
        assert float(difference_T[:half].max()) < 1e-4


def test_video_llama_3_leaves_out_what_stands_still(folder_of: Callable[[str], Path]) -> None:
    """Only one token stays of a frame that equals the one before it, and the one behind a changed frame has all."""
    _model, processor = load(folder_of("video_llama_3"))
    still_NHWC = clip(1).repeat(5, axis=0)
    still_NHWC[2] = 255 - still_NHWC[2]
    inputs = own_inputs(processor, still_NHWC, QUESTION, "video")
    kept_FT = inputs["video_compression_mask"].reshape(5, -1)
    assert kept_FT.sum(1).tolist() == [12, 1, 12, 12, 1]
    assert (inputs["input_ids"] == processor.video_token_id).sum() == 38


def test_long_rope_knows_the_length(folder_of: Callable[[str], Path]) -> None:
    """A beginning within the original length is not the same alone and in a longer prompt; elsewhere it is."""
    differences = {}
    for name in ("long_rope", "llava_onevision"):
        model, processor = load(folder_of(name))
        inputs = own_inputs(processor, clip(8), QUESTION, "video")
        assert inputs["input_ids"].shape[1] > 64
        before = int((inputs["input_ids"][0] == processor.video_token_id).nonzero()[0])
        alone_TV = own_logits(model, {"input_ids": inputs["input_ids"][:, :before]})
        differences[name] = float((own_logits(model, inputs)[:before] - alone_TV).abs().max())
    assert differences["long_rope"] > 1e-3
    assert differences["llava_onevision"] < 1e-4
