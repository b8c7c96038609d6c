"""Alignment of the nano model: a projector that starts in the decoder's words, learning rates by part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_models import write_recipe

from vniah.training.align import load_or_assemble
from vniah.training.nano.pictures import draw_distractors, draw_icons
from vniah.training.nano.tower import calibrate_projector, caption_embeddings, filler_embedding
from vniah.training.recipe import load_recipe
from vniah.training.runner import run_recipe

QUICK = {"precision": "fp32", "threads": 1, "steps": 2, "lr": 1e-3, "log_every": 1}
ICONS = {"icons": True, "template": "nano", "pool_images": 16, "max_tiles": 4}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe's output: two steps each of text and tower, of the projector alone, and of the decoder alone."""
    folder = tmp_path_factory.mktemp("nano")
    text = {"phases": [{"start": 0, "length": 32, "batch": 2}]}
    sizes = {"new": {}, "sequence_length": 32, "max_positions": 1024}
    start = {"kind": "align", "model_from": "text", "tower_from": "tower", "data": ICONS}
    decoder_alone = {**QUICK, "projector_lr": 0.0}
    stages = [
        {"name": "text", "kind": "text", **sizes, "data": text, "train": QUICK},
        {"name": "tower", "kind": "tower", "pool_images": 16, "train": {**QUICK, "batch_size": 4}},
        {"name": "frozen", **start, "train": QUICK},
        {"name": "decoder", **start, "parts": ["projector", "decoder"], "train": decoder_alone},
    ]
    run_recipe(load_recipe(write_recipe(folder, "run", stages, seed=3)), say=lambda _: None)
    return folder / "run"


def weights(folder: Path, part: str) -> dict[str, Any]:
    from safetensors.torch import load_file

    found = load_file(folder / "model" / "model.safetensors")
    return {name.rsplit(part, 1)[1]: value for name, value in found.items() if part in name}


def fresh(trained: Path) -> tuple[Any, Any]:
    from transformers import set_seed

    stage = load_recipe(trained.with_suffix(".yaml")).stage("frozen")
    set_seed(3)
    return load_or_assemble(stage, lambda name: str(trained / name / "model"), seed=3)


def test_the_projector_alone_learns_where_it_is_the_only_part(trained: Path) -> None:
    part = "layers.0.mlp.gate_proj."
    assert torch.equal(weights(trained / "text", part)["weight"], weights(trained / "frozen", part)["weight"])
    start = fresh(trained)[0].model.multi_modal_projector.state_dict()
    found = weights(trained / "frozen", "multi_modal_projector.")
    assert start.keys() == found.keys() and not any(torch.equal(start[name], found[name]) for name in start)


def test_a_projector_rate_of_nothing_leaves_it_while_the_decoder_learns(trained: Path) -> None:
    part = "layers.0.mlp.gate_proj."
    assert not torch.equal(weights(trained / "text", part)["weight"], weights(trained / "decoder", part)["weight"])
    found = weights(trained / "decoder", "multi_modal_projector.")
    for name, value in fresh(trained)[0].model.multi_modal_projector.state_dict().items():
        assert torch.equal(found[name], value)


def test_a_fresh_projector_says_an_icon_in_the_decoders_words() -> None:
    """With the shipped tower and decoder, on combinations that it was not fitted on."""
    from longva_model import LongVAForConditionalGeneration
    from longva_model.backends.loading import nano_folder
    from longva_model.pictures.preprocess import normalise
    from vniah.training.checkpoints import load_tokenizer

    folder = str(nano_folder())
    model, tokenizer = LongVAForConditionalGeneration.from_pretrained(folder), load_tokenizer(folder)
    words = model.get_input_embeddings().weight.clone()
    for layer in model.model.multi_modal_projector.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.reset_parameters()
    report = calibrate_projector(model, tokenizer, seed=1, pictures=400)
    assert report["fit"] < 0.5 * report["constant"]
    assert torch.equal(model.get_input_embeddings().weight, words)
    assert all(parameter.grad is None for parameter in model.parameters())

    icons = draw_icons(60, 32, seed=5, heldout=True)
    blank_NHWC = draw_distractors(60, 32, seed=5, film_share=0.5)
    with torch.no_grad():
        seen_NTD, empty_NTD = (
            model.encode_frames(torch.from_numpy(normalise(pixels))) for pixels in (icons.pixels_NHWC, blank_NHWC)
        )
        meant_ND, filler_D = caption_embeddings(model, tokenizer, icons), filler_embedding(model, tokenizer)
    # Each icon is nearest to its own caption, each other picture to filler.
    known_ND = torch.cat([meant_ND, filler_D[None]])
    nearest_N = torch.cdist(seen_NTD.mean(1), known_ND).argmin(1)
    right = (known_ND[nearest_N] == meant_ND).all(1)
    assert right.float().mean() > 0.8
    blank_N = torch.cdist(empty_NTD.mean(1), known_ND).argmin(1)
    assert (blank_N == 60).float().mean() > 0.9


def test_a_rate_below_nothing_is_refused_on_load() -> None:
    with pytest.raises(ValueError, match="got projector_lr=-1"):
        load_recipe("nano", ["align2.train.projector_lr=-1"])
