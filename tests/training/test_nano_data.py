"""The nano model's words, texts and pictures, and its alignment."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from training_models import write_recipe

from vniah.prompts import NANO, question_text
from vniah.training.align import load_or_assemble
from vniah.training.nano import pictures
from vniah.training.nano.pictures import VisionTasks, draw_distractors, draw_icons, montage
from vniah.training.nano.text_tasks import IGNORE, TextTasks, phase_at
from vniah.training.nano.tower import calibrate_projector, caption_embeddings, filler_embedding
from vniah.training.nano.vocabulary import build_tokenizer
from vniah.training.recipe import load_recipe
from vniah.training.runner import run_recipe
from vniah.training.stages import AlignStage, LengthPhase, Train, VisionData


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


def test_every_needle_question_is_made_of_whole_words(tokenizer: Any) -> None:
    from vniah.needles import open_needles

    for needle in open_needles("icons:0:60"):
        for text in (NANO.pre, question_text(needle.question), needle.answer):
            tokens = tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False).input_ids)
            assert "<unk>" not in tokens and not any(token.startswith("##") for token in tokens)
        assert len(tokenizer(needle.answer, add_special_tokens=False).input_ids) == 1


def test_other_words_fall_apart_into_letters_and_never_into_unknown(tokenizer: Any) -> None:
    ids = tokenizer("Selenium tablets (A. yes) cost $7.50, isn't it?", add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids).replace(" ", "") == "seleniumtablets(a.yes)cost$7.50,isn'tit?"


def test_saved_and_loaded_it_is_the_same(tokenizer: Any, tmp_path: Any) -> None:
    from vniah.training.load import load_tokenizer

    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    again = load_tokenizer(str(tmp_path))
    assert again.get_vocab() == tokenizer.get_vocab()
    assert (again.bos_token_id, again.eos_token_id, again.pad_token_id) == (1, 4, 2)


@pytest.mark.parametrize("length", [32, 64, 200, 1024])
def test_every_answer_is_in_its_text(tokenizer: Any, length: int) -> None:
    """Facts: the value that a question asks for stands with its key before it."""
    tasks = TextTasks(tokenizer, [LengthPhase(start=0, length=length, batch=20)], seed=1, repeat_share=0.0)
    batch = tasks.batch(0)
    assert batch["input_ids"].shape == (20, length)
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        learnt = np.flatnonzero(labels != IGNORE)
        assert len(learnt) and np.array_equal(ids[learnt], labels[learnt])
        words = tokenizer.convert_ids_to_tokens(ids.tolist())
        for place in learnt[labels[learnt] != tokenizer.eos_token_id]:
            question = words[: int(place)]
            key = question[len(question) - 1 - question[::-1].index("?") - 1]
            facts = [part.split()[-7:] for part in " ".join(words[: learnt[0]]).split(".")]
            assert any(key in fact and words[place] in fact for fact in facts)


def test_longer_rows_hold_more_questions_and_leave_facts_far_away(tokenizer: Any) -> None:
    def learnt(length: int) -> list[np.ndarray]:
        tasks = TextTasks(tokenizer, [LengthPhase(start=0, length=length, batch=60)], seed=1, repeat_share=0.0)
        return [np.flatnonzero(row != IGNORE) for row in tasks.batch(0)["labels"]]

    # Two labels a question: the value and the end of the answer.
    questions = [float(np.mean([len(row) / 2 for row in learnt(length)])) for length in (128, 512, 2048)]
    assert 2 * questions[0] < questions[1] and 1.5 * questions[1] < questions[2]
    for length in (256, 512, 2048):
        asked = min(row[0] for row in learnt(length))
        assert asked > length // 2 - 20


def test_repeats_are_learnt_only_where_they_can_be_known(tokenizer: Any) -> None:
    tasks = TextTasks(tokenizer, [LengthPhase(start=0, length=256, batch=20)], seed=1, repeat_share=1.0)
    batch = tasks.batch(0)
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        learnt = labels[labels != IGNORE].tolist()
        text = " ".join(map(str, ids.tolist()))
        assert text.count(" ".join(map(str, learnt[:8]))) >= 2


def test_batches_are_a_function_of_seed_and_step(tokenizer: Any) -> None:
    phases = [LengthPhase(start=0, length=32, batch=4), LengthPhase(start=5, length=64, batch=2)]
    one, two, other = (TextTasks(tokenizer, phases, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.batch(7)["input_ids"], two.batch(7)["input_ids"])
    assert not np.array_equal(one.batch(7)["input_ids"], other.batch(7)["input_ids"])
    assert phase_at(phases, 4).length == 32 and phase_at(phases, 5).length == 64
    with pytest.raises(ValueError, match="start at step 0"):
        TextTasks(tokenizer, phases[1:], seed=1)


def test_held_out_combinations_are_never_drawn_for_training() -> None:
    from vniah.needles.icons import COLOURS, DIGITS, OBJECTS, is_heldout

    names = [list(OBJECTS), list(COLOURS), list(DIGITS)]
    for heldout in (False, True):
        pool = draw_icons(150, 32, seed=4, heldout=heldout)
        combinations = [tuple(kind[i] for kind, i in zip(names, row, strict=True)) for row in pool.labels_N3]
        assert {is_heldout(*combination) for combination in combinations} == {heldout}
    assert pool.pixels_NHWC.shape == (150, 32, 32, 3) and pool.pixels_NHWC.dtype == np.uint8


def test_distractors_come_from_films_that_no_evaluation_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    from vniah import haystack

    seeds: list[int] = []
    real = haystack.open_haystack

    def spy(spec: str) -> Any:
        seeds.append(int(spec.split(":")[1]))
        return real(spec)

    monkeypatch.setattr(haystack, "open_haystack", spy)
    monkeypatch.setattr(pictures, "FILM_FRAMES", 4)
    frames = draw_distractors(12, 32, seed=1, film_share=0.5)
    assert frames.shape == (12, 32, 32, 3)
    assert seeds and min(seeds) >= pictures.FILM_SEED


@pytest.mark.parametrize("merge", ["unires", "spatial_unpad"])
def test_vision_batches_fit_the_model(tokenizer: Any, merge: str) -> None:
    from longva_model.pictures.layout import VisualLayout

    layout = VisualLayout(merge_type=merge, tile_size=32, patch_size=8)
    data = VisionData(icons=True, max_tiles=8, max_questions=3)
    stage = AlignStage(name="a", model_from="m", data=data, train=Train(lr=1e-3, steps=1, batch_size=3))
    config = SimpleNamespace(layout=layout, image_token_index=2**30)
    tasks = VisionTasks(stage, config, tokenizer, draw_icons(60, 32, seed=0), np.zeros((5, 32, 32, 3), np.uint8), 0)
    counts = set()
    for step in range(20):
        batch = tasks.batch(step)
        sizes = [(int(width), int(height)) for height, width in batch["image_sizes"]]
        counts |= {layout.num_tiles(size) - 1 for size in sizes}
        assert len(batch["pixel_values"]) == sum(layout.num_tiles(size) for size in sizes)
        for ids, size in zip(batch["input_ids"], sizes, strict=True):
            assert (ids == 2**30).sum() == layout.num_image_tokens(size)
            if merge == "unires":  # as many tokens as the same pictures make as frames of a video
                assert layout.num_image_tokens(size) == layout.num_video_tokens(layout.num_tiles(size) - 1)
        learnt = batch["labels"] != IGNORE
        assert learnt.any(1).all() and (batch["labels"][learnt] == batch["input_ids"][learnt]).all()
    assert counts == ({2, 3, 4, 8} if merge == "unires" else {2, 3, 4})


def test_a_montage_cut_into_tiles_gives_its_pictures_back() -> None:
    from PIL import Image

    from longva_model.pictures.layout import VisualLayout

    pictures_NHWC = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3)).astype(np.uint8)
    image = Image.fromarray(montage(pictures_NHWC, 4, 2))
    layout = VisualLayout(tile_size=32, patch_size=8)
    assert np.array_equal(layout.tiles(image)[1:], pictures_NHWC)


# Alignment of the nano model: a projector that starts in the decoder's words, learning rates by part.


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


@pytest.mark.slow
def test_the_projector_alone_learns_where_it_is_the_only_part(trained: Path) -> None:
    part = "layers.0.mlp.gate_proj."
    assert torch.equal(weights(trained / "text", part)["weight"], weights(trained / "frozen", part)["weight"])
    start = fresh(trained)[0].model.multi_modal_projector.state_dict()
    found = weights(trained / "frozen", "multi_modal_projector.")
    assert start.keys() == found.keys() and not any(torch.equal(start[name], found[name]) for name in start)


@pytest.mark.slow
def test_a_projector_rate_of_nothing_leaves_it_while_the_decoder_learns(trained: Path) -> None:
    part = "layers.0.mlp.gate_proj."
    assert not torch.equal(weights(trained / "text", part)["weight"], weights(trained / "decoder", part)["weight"])
    found = weights(trained / "decoder", "multi_modal_projector.")
    for name, value in fresh(trained)[0].model.multi_modal_projector.state_dict().items():
        assert torch.equal(found[name], value)


@pytest.mark.slow
def test_a_fresh_projector_says_an_icon_in_the_decoders_words() -> None:
    """With the shipped tower and decoder, on combinations that it was not fitted on."""
    from longva_model import LongVAForConditionalGeneration
    from longva_model.backends.loading import nano_folder
    from longva_model.pictures.preprocess import normalise
    from vniah.training.load import load_tokenizer

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
