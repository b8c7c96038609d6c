"""Supervised fine-tuning repeats the reference: ids, labels, loss and gradients (reference section 5)."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vniah.training.data.llava import IMAGE, check_conversation, encode, expand_images, pieces
from vniah.training.stages import VisionData

Style = functools.partial(VisionData, json=("data.json",))

REFERENCE = Style(newline_after_image="reference")


@pytest.fixture(scope="module")
def case(shared: Path) -> dict[str, Any]:
    expected: dict[str, Any] = json.loads((shared / "parity" / "expected_extra.json").read_text())["sft_qwen"]
    return expected


@pytest.fixture(scope="module")
def processor(shared: Path) -> Any:
    from longva_model import LongVAProcessor

    return LongVAProcessor.from_pretrained(str(shared / "parity" / "LongVA-tiny-unires"))


def encoded(case: dict[str, Any], processor: Any, style: VisionData) -> tuple[list[int], list[int]]:
    turns = check_conversation(case["conversations"], 1)
    return encode(pieces(turns, style), lambda text: processor.tokenizer(text, add_special_tokens=False).input_ids)


def test_ids_and_labels(case: dict[str, Any], processor: Any) -> None:
    ids, labels = encoded(case, processor, REFERENCE)
    assert ids == case["input_ids"]
    assert labels == case["labels"]


def test_the_template_of_inference_has_one_newline(case: dict[str, Any], processor: Any) -> None:
    """Trained by default as it is asked at inference: one newline between image and question."""
    ids, _ = encoded(case, processor, Style())
    at = ids.index(IMAGE)
    reference = case["input_ids"]
    assert ids == reference[: at + 1] + reference[at + 2 :]
    asked = processor(
        text="<image>\nWhat color is the big shape?", images=[torch.zeros(3, 4, 3, dtype=torch.uint8).numpy()]
    )["input_ids"][0]
    tail = [token for token in asked if token < 10_000]
    assert ids[at + 1 : at + 1 + len(tail)] == tail


def test_answers_alone_are_learnt_without_the_reference_labels(case: dict[str, Any], processor: Any) -> None:
    ids, labels = encoded(case, processor, Style(reference_labels=False))
    learnt = [token for token in labels if token >= 0]
    answers = [turn["value"] for turn in case["conversations"] if turn["from"] == "gpt"]
    wanted: list[int] = []
    for answer in answers:
        wanted += processor.tokenizer(answer + "<|im_end|>\n", add_special_tokens=False).input_ids
    assert learnt == wanted and len(ids) == len(labels)


def test_loss_and_gradients(case: dict[str, Any], processor: Any, shared: Path) -> None:
    from PIL import Image

    from longva_model import LongVAForConditionalGeneration
    from longva_model.pictures.preprocess import normalise, to_rgb
    from vniah.training.losses import install_loss

    folder = shared / "parity"
    model = LongVAForConditionalGeneration.from_pretrained(str(folder / "LongVA-tiny-unires"), dtype=torch.float32)
    image = to_rgb(Image.open(folder / "images" / f"{case['image']}.png"))
    layout = model.config.layout
    ids, labels = encoded(case, processor, REFERENCE)
    ids, labels = expand_images(ids, labels, [layout.num_image_tokens(image.size)], model.config.image_token_index)
    install_loss(model)
    loss = model(
        input_ids=torch.tensor([ids]),
        labels=torch.tensor([labels]),
        pixel_values=torch.from_numpy(normalise(layout.tiles(image))),
        image_sizes=torch.tensor([[image.height, image.width]]),
    )["loss"]
    assert loss.item() == pytest.approx(case["loss"], abs=1e-4)
    loss.backward()
    ours = {ours_name(name): p.grad for name, p in model.named_parameters() if p.grad is not None}
    checked = 0
    for name, stats in case["grad_stats"].items():
        grad = ours.get(name)
        if grad is None:
            continue
        checked += 1
        assert list(grad.shape) == stats["shape"]
        # A key's bias moves no softmax: its gradient is rounding noise, hence an absolute allowance too.
        scale = stats["abs_sum"] + 1e-2
        assert float(grad.double().abs().sum()) == pytest.approx(stats["abs_sum"], rel=2e-3, abs=1e-5), name
        assert abs(float(grad.double().sum()) - stats["sum"]) <= 2e-3 * scale, name
    assert checked >= 0.9 * len(case["grad_stats"])


def ours_name(name: str) -> str:
    """Our parameter names as the released layout has them."""
    name = name.replace("model.language_model.", "model.")
    name = name.replace("model.multi_modal_projector.linear_1", "model.mm_projector.0")
    name = name.replace("model.multi_modal_projector.linear_2", "model.mm_projector.2")
    if name.startswith("model.vision_tower."):
        rest = name.removeprefix("model.vision_tower.")
        name = "model.vision_tower.vision_tower.vision_model." + rest.removeprefix("vision_model.")
    return name
