"""Every family's tiny checkpoint loads by the Auto classes, runs its own forward and sees each frame."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from any_model.families import FAMILIES
from any_model.own_forward import own_inputs, own_logprobs

QUESTION, ANSWER = "What is the animal in the frame that does not belong to the clip?", "Teddy bear."


def load(folder: Path) -> tuple[Any, Any]:
    """(model, processor), from the folder alone."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, found = AutoModelForImageTextToText.from_pretrained(
        folder, trust_remote_code=False, use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    assert not found["missing_keys"] and not found["unexpected_keys"]
    return model.float().eval(), AutoProcessor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Any]:
    name = request.param
    package = FAMILIES[name].requires
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"its processor needs {package}")
    folder = tmp_path_factory.mktemp(name)
    FAMILIES[name].build(folder, 0)
    return name, *load(folder)


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
    assert np.isfinite(own_LV).all() and own_LV.shape[1] == model.get_output_embeddings().weight.shape[0]
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
    asked = (clip(7), QUESTION, ANSWER, FAMILIES[name].presentation)
    own_LV, _ = own_logprobs(model, processor, *asked)
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # torch's grouped product has no fp64
    model.double()
    exact_LV, _ = own_logprobs(model, processor, *asked)
    model.float().load_state_dict(kept)
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
