"""Any video-language model a unit and a chunk at a time is what its own forward is of the whole prompt.

Chunks are cut by hand here, from what the model's own processor makes of the whole clip.

Shapes: N units, t tokens a unit, k levels of features, T tokens, V vocabulary.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from any_model.families import FAMILIES
from any_model.own_forward import own_inputs

from longva_model.arguments import ModelArgs
from longva_model.backends.any_model import AnyModelBackend
from longva_model.backends.backend import ExactRotary
from longva_model.backends.unit_pixels import UnitPixels
from longva_model.engine.chunks import Chunk

QUESTION = "What is the animal in the frame that does not belong to the clip?"
# Rounding in fp32: the loudest of these models differ by 8e-5, and by 0.5 at least where another frame is shown.
ROUNDING = 2e-4
AXES = [name for name in FAMILIES if name.startswith(("qwen", "glm"))]


def load(folder: Path, **arguments: Any) -> AnyModelBackend:
    args = ModelArgs(pretrained=str(folder), **arguments)
    return AnyModelBackend(str(folder), args, torch.device("cpu"), torch.float32)


def clip(frames: int) -> np.ndarray:
    """(frames, 48, 64, 3) uint8: coloured squares."""
    squares_NHWC = np.random.default_rng(3).integers(0, 256, (frames, 3, 4, 3), dtype=np.uint8)
    return squares_NHWC.repeat(16, axis=1).repeat(16, axis=2)


def units(inputs: dict[str, Any]) -> UnitPixels:
    """A whole prompt's pixels, cut into units."""
    name = next(name for name in ("pixel_values_videos", "pixel_values") if name in inputs)
    pixels = inputs[name]
    grid = next((inputs[key] for key in ("video_grid_thw", "image_grid_thw") if key in inputs), None)
    found: dict[str, torch.Tensor] = {}
    if grid is not None:
        patches = int(grid[0, 1] * grid[0, 2])
        found[name] = pixels.unflatten(0, (-1, patches))
        alone = torch.tensor([[1, int(grid[0, 1]), int(grid[0, 2])]])
        found["video_grid_thw" if "video_grid_thw" in inputs else "image_grid_thw"] = alone.repeat(len(found[name]), 1)
    else:
        # Gemma 4's of transformers 5.17 are (1, frames, patches, values).
        clips = pixels.ndim == 5 or inputs.get("video_position_ids", pixels[0]).ndim == 4
        found[name] = pixels.flatten(0, 1) if clips else pixels
    count = len(found[name])
    for key in ("image_sizes", "video_position_ids", "image_position_ids", "pixel_attention_mask"):
        if key in inputs:
            found[key] = inputs[key].reshape(count, *inputs[key].shape[-2 if inputs[key].ndim > 2 else -1 :])
    if "video_merge_sizes" in inputs:
        found["video_merge_sizes"] = inputs["video_merge_sizes"].expand(count)
    if "video_compression_mask" in inputs:
        found["video_compression_mask"] = inputs["video_compression_mask"].reshape(count, -1)
    return UnitPixels(found)


def features(backend: AnyModelBackend, pixels: UnitPixels, batch: int) -> list[torch.Tensor]:
    """Of each unit, (k, t, D)."""
    config = backend.model.config.vision_config
    levels = 1 + len(getattr(config, "deepstack_visual_indexes", None) or ())
    # Units that keep different numbers of tokens do not go through the tower together.
    batch = 1 if "video_compression_mask" in pixels.tensors else batch
    parts = [backend.encode_pixels(pixels[start : start + batch]) for start in range(0, len(pixels), batch)]
    return [unit_ktD.unflatten(0, (levels, -1)) for part in parts for unit_ktD in part]


def own_positions(backend: AnyModelBackend, inputs: dict[str, Any]) -> torch.Tensor:
    """What the model's own forward gives its decoder, (T,) where they run on, else (axes, T)."""
    seen: dict[str, Any] = {}

    def look(_module: Any, _args: Any, given: dict[str, Any]) -> None:
        seen.update(given)

    handle = backend.decoder.register_forward_pre_hook(look, with_kwargs=True)
    backend.own_logits(inputs, 1)
    handle.remove()
    positions = seen.get("position_ids")
    if positions is None or positions.ndim == 2:
        return torch.arange(inputs["input_ids"].shape[1])
    return positions[:, 0]


def chunks(backend: AnyModelBackend, inputs: dict[str, Any], size: int, batch: int = 3) -> Iterator[Chunk]:
    """The prompt in chunks of ``size`` tokens that cut no unit."""
    ids_T = inputs["input_ids"][0]
    config = backend.model.config
    names = ("image_token_id", "video_token_id", "image_token_index", "video_token_index")
    placeholders = torch.tensor([one for name in names if (one := getattr(config, name, None)) is not None])
    visual_T = torch.isin(ids_T, placeholders)
    found = features(backend, units(inputs), batch)
    places = torch.nonzero(visual_T)[:, 0].tolist()
    if len(places) == sum(one.shape[1] for one in found) + 1:
        found.append(backend.appended("newline")[None])
    sizes = [one.shape[1] for one in found]
    assert sum(sizes) == len(places)
    inside = set()
    for stop, count in zip(itertools.accumulate(sizes), sizes, strict=True):
        inside.update(range(places[stop - count] + 1, places[stop - 1] + 1))
    all_kVD, positions = torch.cat(found, 1), own_positions(backend, inputs)
    start = used = 0
    while start < len(ids_T):
        stop = min(start + size, len(ids_T))
        while stop in inside and stop > start:
            stop -= 1
        while stop in inside or stop == start:
            stop += 1
        count = int(visual_T[start:stop].sum())
        yield Chunk(
            ids_T=ids_T[start:stop],
            positions=positions[..., start:stop],
            start=start,
            visual_T=visual_T[start:stop],
            features_kVD=all_kVD[:, used : used + count] if count else None,
            types_S=visual_T[:stop].to(torch.uint8),
        )
        start, used = stop, used + count


@torch.inference_mode()
def walked(backend: AnyModelBackend, fed: list[Chunk], cached: bool = True) -> torch.Tensor:
    """Log-probabilities behind each token, (T, V)."""
    state = backend.new_state(sum(map(len, fed))) if cached else None
    hidden_TD = torch.cat([backend.forward(chunk, state, len(chunk)) for chunk in fed])
    return backend.logits(hidden_TD).log_softmax(-1)


def own(backend: AnyModelBackend, inputs: dict[str, Any]) -> torch.Tensor:
    return backend.own_logits(inputs, inputs["input_ids"].shape[1]).log_softmax(-1)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.refused])
def test_equals_the_models_own_forward(name: str, folder_of: Any) -> None:
    backend = load(folder_of(name))
    for frames in (6, 7):
        inputs = own_inputs(backend.processor, clip(frames), QUESTION, FAMILIES[name].presentation)
        wanted_TV = own(backend, inputs)
        assert (walked(backend, list(chunks(backend, inputs, 37))) - wanted_TV).abs().max() < ROUNDING
        (whole,) = chunks(backend, inputs, 10**6, batch=1)
        assert (walked(backend, [whole]) - wanted_TV).abs().max() < ROUNDING
        assert (walked(backend, [whole], cached=False) - wanted_TV).abs().max() < ROUNDING
    other = own_inputs(backend.processor, 255 - clip(7), QUESTION, FAMILIES[name].presentation)
    assert (own(backend, other)[-1] - wanted_TV[-1]).abs().max() > 100 * ROUNDING, "the model sees its frames"


@pytest.mark.parametrize("name", ["qwen3_vl", "gemma3"])
def test_what_a_family_needs_is_given(name: str, folder_of: Any) -> None:
    """Without it, equality would break: levels of DeepStack, and what stands before a chunk."""
    backend = load(folder_of(name))
    inputs = own_inputs(backend.processor, clip(6), QUESTION, FAMILIES[name].presentation)
    fed = list(chunks(backend, inputs, 37))
    if name == "qwen3_vl":
        wrong = [_changed(chunk, features_kVD=_first_level(chunk)) for chunk in fed]
    else:
        wrong = [_changed(chunk, types_S=chunk.types_S.new_zeros(chunk.start + len(chunk))) for chunk in fed]
    assert (walked(backend, wrong) - own(backend, inputs)).abs().max() > 10 * ROUNDING


def _first_level(chunk: Chunk) -> torch.Tensor | None:
    return None if chunk.features_kVD is None else chunk.features_kVD[:1]


def _changed(chunk: Chunk, **values: Any) -> Chunk:
    names = ("ids_T", "positions", "start", "visual_T", "features_kVD", "types_S")
    return Chunk(**{**{name: getattr(chunk, name) for name in names}, **values})


@pytest.mark.parametrize("name", AXES)
def test_exact_angles_are_the_models_own_near_the_start(name: str, folder_of: Any) -> None:
    rotary = load(folder_of(name)).decoder.rotary_emb
    assert isinstance(rotary, ExactRotary)
    positions_3BT = torch.randint(0, 60, (3, 1, 200), generator=torch.Generator().manual_seed(0))
    probe = torch.zeros(1)
    for exact, plain in zip(rotary(probe, positions_3BT), rotary.plain(probe, positions_3BT), strict=True):
        torch.testing.assert_close(exact, plain, atol=2e-5, rtol=0)


def test_fingerprints(folder_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """RoPE decides what a model computes and not what a frame's features are; the processor's files decide both."""
    folder = folder_of("qwen2_5_vl")
    first, turned = load(folder), load(folder, rope_theta=5e5)
    assert turned.decoder.rotary_emb.inv_freq[1] < first.decoder.rotary_emb.inv_freq[1]
    assert first.fingerprint != turned.fingerprint
    assert first.frames_fingerprint == turned.frames_fingerprint
    # A model of another version's code may be given other pixels, or other positions.
    told = first._visual_settings()
    with monkeypatch.context() as patch:
        patch.setattr("transformers.__version__", "5.99.0")
        assert first._visual_settings() != told
    file = next(folder.glob("*processor_config.json"))
    before = file.read_text()
    file.write_text(before + "\n")
    try:
        assert load(folder).frames_fingerprint != first.frames_fingerprint
    finally:
        file.write_text(before)


@pytest.mark.parametrize("name", ["molmo2", "nemotron_h_omni_pruned"])
def test_families_that_cannot_be_right_are_refused(name: str, folder_of: Any) -> None:
    with pytest.raises(ValueError, match="is refused: "):
        load(folder_of(name))


def test_a_length_is_told_up_to_which_long_rope_may_be_cut(folder_of: Any) -> None:
    config = load(folder_of("long_rope")).decoder.config
    assert load(folder_of("long_rope")).chunked_until == config.rope_parameters["original_max_position_embeddings"]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "molmo2"}, "see each other both ways"),
        ({"model_type": "paligemma"}, "sees itself both ways"),
        ({"model_type": "mllama"}, "cross-attention"),
        ({"model_type": "instructblipvideo"}, "depend on the question"),
        ({"model_type": "florence2"}, "an encoder reads the whole prompt"),
        ({"model_type": "ernie4_5_vl_moe"}, "draws each frame's time into its pixels"),
        ({"model_type": "nemotron_h_omni", "video_pruning_rate": 0.5}, "video_pruning_rate=0.5"),
        ({"model_type": "nemotron_h_omni"}, "packs a pair of frames into one picture"),
    ],
)
def test_refused_by_config(config: dict[str, Any], reason: str, tmp_path: Path) -> None:
    """Before any weight is looked for: there are none in the folder."""
    from transformers import CONFIG_MAPPING

    if config["model_type"] not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {config['model_type']}")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=reason):
        load(tmp_path)


def test_units_of_one_size_only() -> None:
    with pytest.raises(ValueError, match="as many units each"):
        UnitPixels({"pixel_values": torch.zeros(2, 3, 4, 4), "image_sizes": torch.zeros(3, 2)})
