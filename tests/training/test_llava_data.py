"""LLaVA-format data: the index, what it refuses, the order and the batches; labels."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from longva_model.pictures.layout import VisualLayout
from vniah.training.data import llava
from vniah.training.data.llava import (
    IMAGE,
    Collator,
    LlavaSamples,
    SampleReader,
    Source,
    build_index,
    check_conversation,
    encode,
    expand_images,
    grouped_order,
    pieces,
)
from vniah.training.processes import BadSampleError
from vniah.training.stages import IGNORE, VisionData

LAYOUT = VisualLayout(tile_size=32, patch_size=8)


class Letters:
    """A tokenizer of one id a letter."""

    pad_token_id = 0

    def __call__(self, text: str, add_special_tokens: bool = True) -> Any:
        class Ids:
            input_ids = [ord(letter) for letter in text]  # noqa: RUF012

        return Ids


def qa(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


@pytest.fixture
def data(tmp_path: Path) -> Source:
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (64, 32)), ("sub/b.png", (32, 96)), ("grey.png", (40, 40))):
        image = Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3)).astype(np.uint8))
        (image.convert("L") if name == "grey.png" else image).save(images / name)
    (images / "broken.png").write_bytes((images / "a.png").read_bytes()[:60])
    samples = [
        {"id": "one", "image": "a.png", "conversations": qa("<image>\nWhat?", "A.")},
        {"id": "two", "image": ["a.png", "sub/b.png"], "conversations": qa("<image><image>Which?", "B.")},
        {"id": "three", "conversations": qa("Hi", "Hello there")},
        {"id": "four", "image": "grey.png", "conversations": qa("<image>\nGrey?", "Yes, it is grey.")},
        {"id": "no-file", "image": "c.png", "conversations": qa("<image>\nWhat?", "A.")},
        {"id": "corrupt", "image": "broken.png", "conversations": qa("<image>\nWhat?", "A.")},
        {"id": "escape", "image": "../data.json", "conversations": qa("<image>\nWhat?", "A.")},
        {"id": "no answer", "conversations": [{"from": "human", "value": "Hi"}]},
        {"id": "few", "image": "a.png", "conversations": qa("<image><image>", "A.")},
        {"image": 3, "conversations": qa("<image>", "A.")},
        {"id": "long", "conversations": qa("Hi", "x" * 2000)},
    ]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(samples))
    return Source(path=str(path), images=str(images))


def reader(source: Source, tokenizer: Any = None, **data: Any) -> SampleReader:
    style = VisionData(json=(source.path,), **{"max_length": 1500, **data})
    return SampleReader([source], style, tokenizer or Letters(), LAYOUT)


def samples_of(folder: Path, source: Source, **data: Any) -> LlavaSamples:
    return LlavaSamples(folder, reader(source, **data), placeholder=2**30, batch=2, seed=0)


def test_bad_samples_are_named_and_counted(data: Source, tmp_path: Path) -> None:
    manifest = build_index(reader(data), tmp_path / "index", 0.9)
    assert (manifest["samples"], manifest["num_bad"]) == (4, 7)
    report = "\n".join(manifest["bad"])
    for wanted in (
        "no-file: no image 'c.png'",
        "corrupt: the image 'broken.png' cannot be decoded",
        "escape: the image path '../data.json' leaves the images folder",
        "no answer: a conversation without an answer",
        "few: 2 <image> placeholders for 1 images",
        "#9: image must be a path",
        "long: 2",
    ):
        assert wanted in report


def test_a_data_set_with_its_images_inside(data: Source, tmp_path: Path) -> None:
    """Parquet with an image column, as LLaVA-NeXT's data is on the Hub."""
    import datasets

    rows = {
        "id": ["x", "y"],
        "conversations": [qa("<image>\nWhat?", "A."), qa("Hi", "Hello")],
        "image": [str(Path(data.images) / "a.png"), None],
    }
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    (tmp_path / "set").mkdir()
    table.to_parquet(str(tmp_path / "set" / "train.parquet"))
    source = Source(path=str(tmp_path / "set"))
    manifest = build_index(reader(source), tmp_path / "index", 0.0)
    assert (manifest["samples"], manifest["num_bad"]) == (2, 0)
    sample = samples_of(tmp_path / "index", source).sample(0)
    assert sample["image_sizes"] == [(32, 64)]


def test_too_many_bad_samples_stop_the_run(data: Source, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="7 of 11 samples are bad"):
        build_index(reader(data), tmp_path / "index", 0.01)


def test_mended_samples_are_looked_at_again(data: Source, tmp_path: Path) -> None:
    """A run that stopped on bad samples goes on once they are good; one that was indexed refuses other samples."""
    path = Path(data.path)
    samples = json.loads(path.read_text())
    wanted = [s for s in samples if s.get("id") in ("one", "corrupt")]
    path.write_text(json.dumps(wanted))
    folder = tmp_path / "index"
    with pytest.raises(ValueError, match=r"1 of 2 samples are bad.*bad\.json"):
        build_index(reader(data), folder, 0.0)
    images = Path(data.images)
    (images / "broken.png").write_bytes((images / "a.png").read_bytes())
    assert build_index(reader(data), folder, 0.0)["samples"] == 2
    path.write_text(json.dumps(wanted[:1]))
    with pytest.raises(ValueError, match="differs in samples"):
        build_index(reader(data), folder, 0.0)


def test_all_bad_samples_are_listed(data: Source, tmp_path: Path) -> None:
    many = [{"id": str(i), "conversations": []} for i in range(1500)]
    good = {"id": "good", "conversations": qa("Hi", "Hello")}
    Path(data.path).write_text(json.dumps([*many, good]))
    manifest = build_index(reader(data), tmp_path / "index", 1.0)
    assert manifest["num_bad"] == len(manifest["bad"]) == 1500


@pytest.mark.slow
def test_the_index_does_not_depend_on_the_number_of_workers(
    data: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vniah.training.nano.vocabulary import build_tokenizer

    monkeypatch.setattr(llava, "PART_SAMPLES", 4)
    for workers in (1, 2):
        build_index(reader(data, build_tokenizer(), max_length=500), tmp_path / str(workers), 0.9, workers)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("1", "2"))
    assert one == two and len(one) > 4


def test_an_index_goes_on_after_a_kill(data: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llava, "PART_SAMPLES", 4)
    looked: list[str] = []
    real = SampleReader.measure

    def look(self: SampleReader, sample: Any, source: int) -> tuple[int, bool]:
        looked.append(str(sample.get("id")))
        if len(looked) == 6:
            raise KeyboardInterrupt
        measured: tuple[int, bool] = real(self, sample, source)
        return measured

    monkeypatch.setattr(SampleReader, "measure", look)
    with pytest.raises(KeyboardInterrupt):
        build_index(reader(data), tmp_path / "index", 0.9)
    manifest = build_index(reader(data), tmp_path / "index", 0.9)
    assert (manifest["samples"], manifest["num_bad"]) == (4, 7)
    assert looked.count("one") == 1 and looked.count("no-file") == 2


def test_samples_hold_their_tiles_and_placeholders(data: Source, tmp_path: Path) -> None:
    build_index(reader(data), tmp_path / "index", 0.9)
    samples = samples_of(tmp_path / "index", data)
    assert len(samples) == 4
    for number in range(4):
        sample = samples.sample(number)
        visual = sum(LAYOUT.num_image_tokens((w, h)) for h, w in sample["image_sizes"] or ())
        assert sample["ids"].count(2**30) == visual and len(sample["ids"]) == len(sample["labels"])
    batch = Collator(0)([samples.sample(1), samples.sample(2)])
    assert batch["image_sizes"].tolist() == [[32, 64], [96, 32]]
    tiles = sum(LAYOUT.num_tiles(size) for size in ((64, 32), (32, 96)))
    assert batch["pixel_values"].shape == (tiles, 32, 32, 3)
    assert batch["pixel_values"].dtype == torch.uint8
    assert batch["labels"][batch["attention_mask"] == 0].unique().tolist() == [-100]
    assert "pixel_values" not in Collator(0)([samples.sample(2)])


def test_a_file_that_went_bad_after_indexing_is_an_error_and_not_replaced(data: Source, tmp_path: Path) -> None:
    build_index(reader(data), tmp_path / "index", 0.9)
    (Path(data.images) / "a.png").unlink()
    with pytest.raises(BadSampleError, match=r"no image 'a\.png'"):
        samples_of(tmp_path / "index", data).sample(0)


def test_passes_differ_in_order_and_each_holds_every_sample(data: Source, tmp_path: Path) -> None:
    build_index(reader(data), tmp_path / "index", 0.9)
    samples = samples_of(tmp_path / "index", data, group_by_length=False)
    orders = [samples.order(epoch).tolist() for epoch in range(6)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert len({tuple(order) for order in orders}) > 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 500), st.booleans()), min_size=1, max_size=200), st.integers(1, 8))
def test_grouped_order_is_a_permutation_in_batches_of_one_modality(items: list[tuple[int, bool]], batch: int) -> None:
    lengths, has_image = np.array([n for n, _ in items]), np.array([b for _, b in items])
    order = grouped_order(lengths, has_image, batch, np.random.default_rng(0))
    assert sorted(order.tolist()) == list(range(len(items)))
    whole = sum(int(count) // batch for count in (has_image.sum(), (~has_image).sum()))
    for start in range(0, whole * batch, batch):
        assert len(set(has_image[order[start : start + batch]].tolist())) == 1


def test_batches_are_of_similar_length() -> None:
    rng = np.random.default_rng(1)
    lengths = rng.integers(10, 2000, 640)
    order = grouped_order(lengths, np.ones(640, bool), 4, rng)
    spread = np.ptp(lengths[order].reshape(-1, 4), axis=1).mean()
    assert spread < 0.1 * np.ptp(rng.permutation(lengths).reshape(-1, 4), axis=1).mean()


def test_the_collated_batch_trains_a_model(data: Source, tmp_path: Path) -> None:
    """One step of UniRes on a mixed batch: finite loss, gradients in tower, projector and decoder."""
    from transformers import CLIPVisionConfig, Qwen2Config

    from longva_model import LongVAConfig, LongVAForConditionalGeneration
    from longva_model.pictures.preprocess import normalise
    from vniah.training.align import empty_picture
    from vniah.training.losses import install_loss

    torch.manual_seed(0)
    text = Qwen2Config(
        vocab_size=256, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=4096,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    model = LongVAForConditionalGeneration(LongVAConfig(text_config=text, vision_config=vision))
    build_index(reader(data), tmp_path / "index", 0.9)
    samples = samples_of(tmp_path / "index", data)
    install_loss(model, without_visuals=lambda: empty_picture(model))
    called: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: called.append(name))
    text_only = model(**Collator(0)([samples.sample(2)]))["loss"]
    text_only.backward()
    tower = model.model.vision_tower.get_input_embeddings().weight
    assert tower.grad is not None and not tower.grad.any()
    on_text, called[:] = list(called), []
    loss = model(**Collator(0)([samples.sample(i) for i in range(4)]))["loss"]
    loss.backward()
    # Ranks that share their layers must run them in one order, whatever is in their batches.
    assert on_text == called
    assert torch.isfinite(loss)
    # Bytes and what the processor makes of them on the host are one picture, to the bit.
    batch = Collator(0)([samples.sample(i) for i in range(4)])
    batch["pixel_values"] = torch.from_numpy(normalise(batch["pixel_values"].numpy()))
    assert torch.equal(model(**batch)["loss"], loss)
    for part in (model.model.multi_modal_projector.linear_1, model.lm_head):
        assert part.weight.grad.abs().sum() > 0
    assert tower.grad.abs().sum() > 0


# Conversations as ids and labels, and the samples that are refused.


Style = functools.partial(VisionData, json=("data.json",))


def turn(role: str, value: Any) -> dict[str, Any]:
    return {"from": role, "value": value}


@pytest.mark.parametrize(
    ("conversations", "images", "reason"),
    [
        (None, 0, "no conversation"),
        ([], 0, "no conversation"),
        ("hello", 0, "no conversation"),
        ([turn("human", "a")], 0, "without an answer"),
        ([turn("gpt", "a")], 0, "without an answer"),
        ([turn("human", "a"), turn("gpt", "b"), turn("human", "c")], 0, "without an answer"),
        ([turn("human", "a"), turn("gpt", " ")], 0, "empty answer"),
        ([turn("human", "a"), turn("human", "b"), turn("gpt", "c")], 0, "alternate"),
        ([turn("robot", "a"), turn("gpt", "c")], 0, "'robot'"),
        ([turn("human", 3), turn("gpt", "c")], 0, "text value"),
        ([turn("human", "<image>\n<image>\na"), turn("gpt", "b")], 1, "2 <image> placeholders for 1 images"),
        ([turn("human", "a"), turn("gpt", "b")], 1, "0 <image> placeholders for 1 images"),
    ],
)
def test_bad_samples(conversations: Any, images: int, reason: str) -> None:
    with pytest.raises(BadSampleError, match=reason):
        check_conversation(conversations, images)


def ordinals(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def test_plain_learns_the_caption_alone() -> None:
    turns = check_conversation([turn("human", "Describe.\n<image>"), turn("gpt", "a cat")], 1)
    ids, labels = encode(pieces(turns, Style(template="plain")), ordinals)
    assert ids == [IMAGE, *ordinals("a cat\n")]
    assert labels == [IGNORE, *ordinals("a cat\n")]


def test_several_images_and_text_before_them() -> None:
    turns = check_conversation([turn("human", "Left <image>\nright <image>\nWhich?"), turn("gpt", "left")], 2)
    ids, labels = encode(pieces(turns, Style()), ordinals)
    text = "".join(chr(i) if i != IMAGE else "@" for i in ids)
    assert "user\nLeft @\nright @\nWhich?<|im_end|>\n" in text
    assert len(ids) == len(labels) and all(label == IGNORE for i, label in zip(ids, labels, strict=True) if i == IMAGE)


@pytest.mark.parametrize("value", ["<image>\nWhat?", "What?\n<image>", "What? <image>"])
def test_the_one_image_of_a_turn_comes_first(value: str) -> None:
    """As in the original's training and at inference, wherever the data has it."""
    turns = check_conversation([turn("human", value), turn("gpt", "b")], 1)
    ids, _ = encode(pieces(turns, Style()), ordinals)
    assert "user\n@\nWhat?<|im_end|>" in "".join(chr(i) if i != IMAGE else "@" for i in ids)


def test_the_one_image_of_a_turn_may_stay_where_it_is() -> None:
    turns = check_conversation([turn("human", "Left <image> of"), turn("gpt", "b")], 1)
    ids, _ = encode(pieces(turns, Style(single_image_first=False)), ordinals)
    assert "user\nLeft @\n of<|im_end|>" in "".join(chr(i) if i != IMAGE else "@" for i in ids)


def test_text_only() -> None:
    turns = check_conversation([turn("human", "Hi"), turn("gpt", "Hello")], 0)
    ids, _ = encode(pieces(turns, Style()), ordinals)
    assert IMAGE not in ids


def test_images_are_expanded_in_order() -> None:
    ids, labels = expand_images([1, IMAGE, 2, IMAGE, 3], [1, IGNORE, 2, IGNORE, 3], [2, 3], 99)
    assert ids == [1, 99, 99, 2, 99, 99, 99, 3]
    assert labels == [1, IGNORE, IGNORE, 2, IGNORE, IGNORE, IGNORE, 3]


def test_an_unknown_template() -> None:
    with pytest.raises(ValueError, match="cannot train with the template 'alpaca'"):
        pieces([("user", "a"), ("assistant", "b")], Style(template="alpaca"))
