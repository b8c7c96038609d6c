"""Every figure of the parity cases: pixels, tower, projector, visual tokens, logits, greedy tokens, V-NIAH, SFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from longva_model import LongVAForConditionalGeneration, LongVAProcessor
from longva_model.backbone import tower_features
from longva_model.checkpoints.layouts import to_released_key

TAGS = ("unires", "anyres")


class Case:
    """A parity checkpoint, what the original computed from it, and its inputs."""

    def __init__(self, root: Path, tag: str) -> None:
        self.root, self.tag = root, tag
        self.model = LongVAForConditionalGeneration.from_pretrained(root / f"LongVA-tiny-{tag}", dtype=torch.float32)
        self.processor = LongVAProcessor.from_pretrained(root / f"LongVA-tiny-{tag}")
        self.expected = json.loads((root / f"expected_{tag}.json").read_text())
        self.arrays = np.load(root / f"expected_{tag}.npz")
        self.frames = np.stack([self.read(f"video/frame_{i:02d}.png") for i in range(8)])

    def read(self, name: str) -> np.ndarray:
        return np.asarray(Image.open(self.root / name).convert("RGB"))

    def visuals(self) -> dict[str, dict[str, Any]]:
        """Arguments of the processor by the case's name in the expected file."""
        images = {name: {"images": [Image.open(self.root / f"images/{name}.png")]} for name in self.expected["images"]}
        return images | {"video": {"videos": [self.frames]}}

    def answer(self, name: str) -> dict[str, Any]:
        return dict(self.expected["video"] if name == "video" else self.expected["images"][name])


@pytest.fixture(scope="module", params=TAGS)
def case(request: pytest.FixtureRequest, shared: Path) -> Case:
    return Case(shared / "parity", request.param)


def near(got: torch.Tensor, expected: np.ndarray, atol: float) -> None:
    np.testing.assert_allclose(got.detach().float().numpy(), expected, atol=atol, rtol=0)


def test_pixels_and_visual_tokens(case: Case) -> None:
    for name, given in case.visuals().items():
        inputs = case.processor(**given, return_tensors="pt")
        pixels = inputs.get("pixel_values", inputs.get("pixel_values_videos"))
        near(pixels[0][:, :, ::48, ::48], case.arrays[f"{case.tag}.{name}.pixels_s48"], 1e-5)
        assert abs(pixels.double().sum().item() - case.answer(name)["pixel_values"]["sum"]) < 5
        with torch.no_grad():
            if name == "video":
                tokens = case.model.get_video_features(**inputs)
            else:
                tokens = case.model.get_image_features(**inputs)
        near(tokens, case.arrays[f"{case.tag}.{name}.visual"], 5e-5)


def test_tower_and_projector(case: Case) -> None:
    for name in case.expected["images"]:
        pixels = case.processor(**case.visuals()[name], return_tensors="pt")["pixel_values"][0, :2]
        with torch.no_grad():
            tower = tower_features(case.model.vision_tower, pixels, case.model.config)
            near(tower[:, ::16], case.arrays[f"{case.tag}.{name}.tower_first2_s16"], 5e-5)
            projected = case.model.model.encode_tiles(pixels)
            near(projected[:, ::16], case.arrays[f"{case.tag}.{name}.projector_first2_s16"], 5e-5)


def test_input_ids_logits_and_greedy_tokens(case: Case) -> None:
    for name, given in case.visuals().items():
        answer = case.answer(name)
        inputs = case.processor(text=answer["prompt"], **given, return_tensors="pt")
        ids = inputs["input_ids"][0].tolist()
        placeholders = {case.model.config.image_token_index, case.model.config.video_token_index}
        assert len(ids) == answer["n_total_tokens"]
        at = answer["input_ids"].index(-200)
        count = answer["n_visual_tokens"]
        assert ids[:at] + ids[at + count :] == answer["input_ids"][:at] + answer["input_ids"][at + 1 :]
        assert len(set(ids[at : at + count])) == 1 and set(ids[at : at + count]) < placeholders
        with torch.inference_mode():
            logits = case.model(**inputs, logits_to_keep=5).logits[0]
            out = case.model.generate(**inputs, max_new_tokens=12, min_new_tokens=12, do_sample=False)[0].tolist()
        near(logits, case.arrays[f"{case.tag}.{name}.logits_last5"], 5e-4)
        assert logits.argmax(-1).tolist() == answer["argmax_last5"]
        assert out == ids + answer["greedy12"]


def test_text_only(case: Case) -> None:
    expected = case.expected["text_only"]
    with torch.inference_mode():
        logits = case.model(input_ids=torch.tensor([expected["input_ids"]])).logits[0]
    near(logits, case.arrays[f"{case.tag}.text_only.logits"], 5e-4)
    assert logits.argmax(-1).tolist() == expected["argmax"]


def test_vniah_embeddings_and_cells(shared: Path) -> None:
    case = Case(shared / "parity", "unires")
    expected = json.loads((case.root / "expected_niah.json").read_text())
    arrays = np.load(case.root / "expected_niah.npz")
    model, processor = case.model, case.processor

    def encode(names: list[str]) -> torch.Tensor:
        pixels = processor(
            videos=[[Image.open(case.root / name) for name in names]], preprocess="pad", return_tensors="pt"
        )
        tokens: torch.Tensor = model.encode_frames(pixels["pixel_values_videos"][0])
        return tokens

    def embed(text: str) -> torch.Tensor:
        ids = processor.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        embedded: torch.Tensor = model.get_input_embeddings()(ids)[0]
        return embedded

    with torch.inference_mode():
        haystack = encode([f"niah/haystack/haystack_{i:02d}.png" for i in range(8)])
        needles = encode([f"niah/needles/needle_{i}.png" for i in range(2)])
        near(haystack, arrays["niah.haystack"], 5e-5)
        near(needles, arrays["niah.needles"], 5e-5)
        for cell in expected["cells"]:
            needle, k, frames = cell["needle"], cell["needle_position"], cell["num_frames"]
            spliced = torch.cat([haystack[:k], needles[needle][None], haystack[k:frames]]).flatten(0, 1)
            texts = expected["template"]["pre"], expected["needles"][needle]["question"], expected["template"]["post"]
            parts = [
                embed(texts[0]),
                spliced,
                embed(texts[1]),
                embed(texts[2]),
                embed(expected["needles"][needle]["answer"]),
            ]
            embeds = torch.cat(parts)[None]
            length = len(cell["answer_ids"])
            assert embeds.shape[1] - length == cell["prompt_length"]
            logits = model(inputs_embeds=embeds, logits_to_keep=length + 1).logits[0, :-1]
            depth = int(cell["depth"] * 100)
            near(logits, arrays[f"niah.logits.f{frames}.d{depth}.n{needle}"], 5e-4)
            assert logits.argmax(-1).tolist() == cell["pred_ids"]


def test_sft_loss_and_gradients(shared: Path) -> None:
    case = Case(shared / "parity", "unires")
    expected = json.loads((case.root / "expected_extra.json").read_text())["sft_qwen"]
    image = case.processor(images=[Image.open(case.root / f"images/{expected['image']}.png")], return_tensors="pt")
    at, count = expected["input_ids"].index(-200), 576
    ids, labels = ([*values[:at], *[filler] * count, *values[at + 1 :]] for values, filler in (
        (expected["input_ids"], case.model.config.image_token_index), (expected["labels"], -100)
    ))  # fmt: skip
    loss = case.model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels]), **image).loss
    assert abs(loss.item() - expected["loss"]) < 1e-5
    loss.backward()
    gradients = {to_released_key(name): p.grad for name, p in case.model.named_parameters()}
    assert sorted(name for name, g in gradients.items() if g is None) == sorted(expected["no_grad_params"])
    unused = {id(parameter) for parameter in case.model.model.unused_parameters()}
    assert {id(p) for p in case.model.parameters() if p.grad is None} == unused
    for name, stats in expected["grad_stats"].items():
        gradient = gradients[name].double()
        np.testing.assert_allclose(gradient.abs().sum().item(), stats["abs_sum"], rtol=2e-3, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(gradient.square().sum().item(), stats["sq_sum"], rtol=4e-3, atol=1e-9, err_msg=name)
        assert abs(gradient.sum().item() - stats["sum"]) < 1e-3 * stats["abs_sum"] + 1e-4, name
