"""The nano model's words, texts and pictures, and its alignment."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from training_models import write_recipe

from longva_model.pictures.preprocess import normalise
from vniah.prompts import NANO, question_text
from vniah.training.align import load_or_assemble
from vniah.training.fit import build_optimizer
from vniah.training.nano import pictures
from vniah.training.nano.calibrate import calibration, caption_embeddings, tile_tokens, word_embeddings
from vniah.training.nano.pictures import IconPool, VisionTasks, draw_distractors, draw_icons, montage
from vniah.training.nano.text_tasks import IGNORE, TextTasks, phase_at
from vniah.training.nano.tower import scale_projector
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


def test_bars_cover_two_sides_or_four_and_leave_the_middle_and_what_was_given() -> None:
    given_NHWC = np.full((200, 32, 32, 3), 7, np.uint8)
    barred_NHWC = pictures.barred(given_NHWC, np.random.default_rng(0), share=0.5)
    assert (given_NHWC == 7).all() and (barred_NHWC[:, 12:20, 12:20] == 7).all()
    rows_N, columns_N = (barred_NHWC[:, 0, 16, 0] == 0), (barred_NHWC[:, 16, 0, 0] == 0)
    assert {(bool(a), bool(b)) for a, b in zip(rows_N, columns_N, strict=True)} == {
        (a, b) for a in (0, 1) for b in (0, 1)
    }
    assert 70 < rows_N.sum() < 130 and np.array_equal(barred_NHWC, barred_NHWC[:, ::-1, ::-1])


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
    """A recipe's output: two steps each of text, tower, calibration, the projector alone, and the decoder alone."""
    folder = tmp_path_factory.mktemp("nano")
    text = {"phases": [{"start": 0, "length": 32, "batch": 2}]}
    sizes = {"new": {}, "sequence_length": 32, "max_positions": 1024}
    start = {"kind": "align", "model_from": "text", "tower_from": "tower", "data": ICONS}
    decoder_alone = {**QUICK, "projector_lr": 0.0}
    stages = [
        {"name": "text", "kind": "text", **sizes, "data": text, "train": QUICK},
        {"name": "tower", "kind": "tower", "pool_images": 16, "train": {**QUICK, "batch_size": 4}},
        {"name": "calibrate", **start, "kind": "calibrate", "train": {**QUICK, "batch_size": 4}},
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
def test_calibration_writes_a_whole_longva_whose_decoder_is_as_it_was(trained: Path) -> None:
    for part in ("layers.0.mlp.gate_proj.", "embed_tokens."):
        assert torch.equal(weights(trained / "text", part)["weight"], weights(trained / "calibrate", part)["weight"])
    start = fresh(trained)[0].model
    for part, before in (
        ("multi_modal_projector.", start.multi_modal_projector),
        ("vision_tower.", start.vision_tower),
    ):
        found = weights(trained / "calibrate", part)
        assert any(not torch.equal(value, found[name]) for name, value in before.state_dict().items())
    assert (trained / "calibrate" / "model" / "processor_config.json").is_file()


@pytest.mark.slow
def test_a_projector_rate_of_nothing_leaves_it_while_the_decoder_learns(trained: Path) -> None:
    part = "layers.0.mlp.gate_proj."
    assert not torch.equal(weights(trained / "text", part)["weight"], weights(trained / "decoder", part)["weight"])
    found = weights(trained / "decoder", "multi_modal_projector.")
    for name, value in fresh(trained)[0].model.multi_modal_projector.state_dict().items():
        assert torch.equal(found[name], value)


@pytest.fixture(scope="module")
def shipped() -> tuple[Any, Any]:
    """The shipped model and its tokenizer."""
    from longva_model import LongVAForConditionalGeneration
    from longva_model.backends.loading import nano_folder
    from vniah.training.load import load_tokenizer

    folder = str(nano_folder())
    return LongVAForConditionalGeneration.from_pretrained(folder), load_tokenizer(folder)


def batch_of(icons: IconPool, others_NHWC: Any) -> dict[str, Any]:
    pixels_NHWC = np.concatenate([icons.pixels_NHWC, others_NHWC])
    labels_N3 = np.concatenate([icons.labels_N3, np.full((len(others_NHWC), 3), -1)])
    return {"pixel_values": torch.from_numpy(normalise(pixels_NHWC)), "labels_N3": torch.from_numpy(labels_N3)}


def test_calibration_fits_icons_to_their_captions_and_anything_else_to_filler(shipped: tuple[Any, Any]) -> None:
    """From an untrained projector, with the shipped tower and decoder; on pictures that it was not fitted on."""
    model, tokenizer = deepcopy(shipped[0]), shipped[1]
    words = model.get_input_embeddings().weight.clone()
    patches = model.model.vision_tower.embeddings.patch_embedding.weight.clone()
    for layer in model.model.multi_modal_projector.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.reset_parameters()
    scale_projector(model, seed=1)
    fitted = calibration(model, tokenizer, background=2.0)
    train = Train(lr=2e-3, steps=1, precision="fp32")
    optimizer = build_optimizer(fitted, train)
    whole = batch_of(draw_icons(200, 32, seed=1), draw_distractors(100, 32, seed=1, film_share=0.0))
    rng = np.random.default_rng(0)
    for _ in range(40):
        chosen = torch.from_numpy(rng.integers(0, 300, 48))
        optimizer.zero_grad()
        fitted(**{key: value[chosen] for key, value in whole.items()})["loss"].backward()
        optimizer.step()
    assert torch.equal(model.get_input_embeddings().weight, words)  # the decoder is as it was, the tower is not
    assert not torch.equal(model.model.vision_tower.embeddings.patch_embedding.weight, patches)

    table_VD, filler_D = word_embeddings(model, tokenizer)
    icons = draw_icons(40, 32, seed=5, heldout=True)
    batch = batch_of(icons, draw_distractors(40, 32, seed=5, film_share=0.0))
    with torch.no_grad():
        tokens_ND = tile_tokens(model, batch["pixel_values"]).mean(1)
        frames_ND = model.encode_frames(batch["pixel_values"]).mean(1)
    assert torch.allclose(tokens_ND, frames_ND, atol=1e-5)  # what is fitted is what a frame of a video is
    meant_ND = caption_embeddings(table_VD, torch.from_numpy(icons.labels_N3))
    known_ND = torch.cat([meant_ND, filler_D[None]])
    nearest_N = torch.cdist(tokens_ND, known_ND).argmin(1)
    assert (known_ND[nearest_N[:40]] == meant_ND).all(1).float().mean() > 0.4  # chance: 1 in 41
    assert (nearest_N[40:] == 40).float().mean() > 0.9


def test_the_background_weighs_as_much_as_it_is_given(shipped: tuple[Any, Any]) -> None:
    batch = batch_of(draw_icons(6, 32, seed=2), draw_distractors(3, 32, seed=2, film_share=0.0))
    model = deepcopy(shipped[0])

    def loss(weight: float) -> float:
        return float(calibration(model, shipped[1], background=weight)(**batch)["loss"])

    icons = loss(0.0)
    assert loss(3.0) - icons == pytest.approx(3 * (loss(1.0) - icons), rel=1e-4) and loss(1.0) > icons
    table_VD, _ = word_embeddings(model, shipped[1])
    with torch.no_grad():
        tokens_NTD = tile_tokens(model, batch["pixel_values"][:6])
        targets_N1D = caption_embeddings(table_VD, batch["labels_N3"][:6])[:, None]
        error = float((tokens_NTD - targets_N1D).square().sum(-1).mean() / table_VD.var(0).sum())
    assert icons == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("calibrate.background=-1", "background must not be negative"),
        ("calibrate.train.batch_size=1", "at least 2"),
        ("calibrate.data={json: [a.json]}", "give data.icons: true"),
    ],
)
def test_a_calibration_that_cannot_be_is_refused_on_load(change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe("nano", [change])


@pytest.mark.parametrize("make", [pictures._clouds, pictures._dead_leaves])
def test_natural_pictures_have_the_spectrum_of_photographs(make: Any) -> None:
    """Amplitude falls as a power of spatial frequency: about -1 in photographs (Field 1987), 0 in white noise."""
    rng, slopes = np.random.default_rng(3), []
    for _ in range(12):
        grey_HW = np.asarray(make(rng, 96, 96).convert("L"), float)
        amplitude_HW = np.abs(np.fft.fft2(grey_HW - grey_HW.mean()))
        frequency_HW = np.hypot(np.fft.fftfreq(96)[:, None], np.fft.fftfreq(96)[None])
        inside = (frequency_HW > 0.02) & (frequency_HW < 0.4)
        slopes.append(np.polyfit(np.log(frequency_HW[inside]), np.log(amplitude_HW[inside] + 1e-9), 1)[0])
    assert -1.7 < np.mean(slopes) < -0.7 and max(slopes) < -0.3


def test_a_rate_below_nothing_is_refused_on_load() -> None:
    with pytest.raises(ValueError, match="got projector_lr=-1"):
        load_recipe("nano", ["align2.train.projector_lr=-1"])
