"""The paper's baselines by transformers' own classes: LLaVA-NeXT-Video, and text-only models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lmms_requests import film, picture
from PIL import Image
from tiny_checkpoints import TEXT, VISION, letters, write_llava_next_video, write_text_model
from video_files import inserted

from longva_model.arguments import ModelArgs
from longva_model.pictures.preprocess import fit_frames, normalise
from longva_model.prompts.prompting import build_prompt
from longva_model.run.runner import Runner
from vniah.contract.requests import Generate, Leaf, Target
from vniah.haystack import SyntheticHaystack
from vniah.prompts import MISTRAL
from vniah.visual.compose import SplicedVideo

pytestmark = pytest.mark.usefixtures("module_cache")
TILE = VISION["image_size"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = write_llava_next_video(tmp_path_factory.mktemp("baseline"))
    return made


def load(folder: Path, **args: Any) -> Runner:
    return Runner.load(ModelArgs.read({"pretrained": str(folder), "dtype": "float32", "device": "cpu", **args}))


@pytest.fixture(scope="module")
def runner(folder: Path) -> Runner:
    return load(folder)


@pytest.fixture(scope="module")
def own(folder: Path) -> Any:
    """The model as any user of transformers has it."""
    from transformers import LlavaNextVideoForConditionalGeneration

    return LlavaNextVideoForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


def run(runner: Runner, prompts: list[Any]) -> list[Any]:
    return runner.engine(ring=False).run(prompts)


def cells(leaf: Leaf) -> list[Any]:
    """V-NIAH prompts: two needles at three depths of twelve frames."""
    haystack = SyntheticHaystack(0, num_frames=12, width=48, height=32)
    videos = [
        SplicedVideo(haystack=haystack, num_frames=12, inserted=inserted(picture(40, 40, seed), index))
        for index in (0, 5, 12)
        for seed in (3, 4)
    ]
    return [build_prompt("Find it. What is it?", [video], leaf, MISTRAL, max_frames=12) for video in videos]


@pytest.mark.parametrize("preprocess", ["pad", "crop"])
def test_frames_are_encoded_as_the_model_encodes_a_video(runner: Runner, own: Any, preprocess: Any) -> None:
    backend: Any = runner.backend
    pixels = torch.from_numpy(normalise(fit_frames(film(), preprocess, TILE)))
    with torch.inference_mode():
        out = own.get_video_features(pixels[None])
        found = backend.encode_pixels(backend.pixels(film(), preprocess))
        alone = torch.cat([backend.encode_pixels(backend.pixels(film()[n : n + 1], preprocess)) for n in range(5)])
    assert found.shape == (5, backend.tokens_per_frame, TEXT["hidden_size"]) == (5, 4, 32)
    # One tensor a video, or, in older transformers, one a frame.
    wanted = torch.cat([tokens.flatten(0, -2) for tokens in out.pooler_output])
    torch.testing.assert_close(found.flatten(0, 1), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alone, found, atol=1e-5, rtol=1e-5)


def test_images_are_seen_as_the_models_own_processor_shows_them(runner: Runner, own: Any) -> None:
    from transformers import LlavaNextImageProcessor

    processor = LlavaNextImageProcessor(
        size={"shortest_edge": TILE},
        crop_size={"height": TILE, "width": TILE},
        image_grid_pinpoints=own.config.image_grid_pinpoints,
    )
    backend: Any = runner.backend
    for width, height in ((40, 30), (30, 40), (90, 28), (28, 28), (200, 31), (57, 130)):
        # Of one colour, since transformers resizes by torchvision and not by PIL: what is tested is the layout.
        image = Image.new("RGB", (width, height), (200, 30, 90))
        inputs = processor(images=[image], return_tensors="pt")
        with torch.inference_mode():
            out = own.get_image_features(inputs["pixel_values"], inputs["image_sizes"])
        (wanted,) = out.pooler_output
        found = backend.encode_image(image)
        assert len(found) == backend.image_tokens(image.size) == len(wanted), (width, height)
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_tree_and_plain_give_what_the_model_itself_gives(folder: Path, runner: Runner, own: Any) -> None:
    prompts = cells(Target("ok"))
    tree, plain = run(runner, prompts), run(load(folder, scoring="plain"), prompts)
    for one, other in zip(tree, plain, strict=True):
        assert one.predicted_ids == other.predicted_ids and one.prompt_tokens == other.prompt_tokens
        np.testing.assert_allclose(one.answer_logprobs, other.answer_logprobs, atol=2e-4)
    assert len({tuple(result.answer_logprobs) for result in tree}) == len(prompts)

    # The same prompt with the model's own placeholders and pixels.
    tokenizer, video = letters(), own.config.video_token_index
    said = prompts[2]
    frames = said.media[next(iter(said.media))].frames(0, 12)
    pixels = normalise(fit_frames(frames, "pad", TILE))
    shown = [said.media[name] for name in said.media if name.startswith("image")] or [picture(40, 40, 3)]
    needle = normalise(fit_frames(shown, "pad", TILE))
    pixels = np.concatenate([pixels[:5], needle, pixels[5:]])
    text = [tokenizer(part).input_ids for part in ("<s>[INST]", "\nFind it. What is it?", " [/INST]", "ok")]
    ids = torch.tensor([text[0] + [video] * (13 * 4) + text[1] + text[2] + text[3]])
    with torch.inference_mode():
        logits = own(input_ids=ids, pixel_values_videos=torch.from_numpy(pixels)[None]).logits[0, -3:-1]
    wanted = logits.log_softmax(-1).gather(1, ids[0, -2:, None])[:, 0]
    assert tree[2].predicted_ids == logits.argmax(-1).tolist()
    np.testing.assert_allclose(tree[2].answer_logprobs, wanted.tolist(), atol=2e-4)


def test_generation_goes_through_it_too(runner: Runner, folder: Path) -> None:
    leaf = Generate(max_new_tokens=6)
    prompts = [
        build_prompt("What is it?", [visual], leaf, MISTRAL, max_frames=4) for visual in (film(), picture(60, 40))
    ]
    tree, plain = run(runner, prompts), run(load(folder, scoring="plain"), prompts)
    assert [one.text for one in tree] == [one.text for one in plain]
    beams = [build_prompt("What?", [film()], Generate(max_new_tokens=6, num_beams=3), MISTRAL, max_frames=4)]
    assert len(run(runner, beams)[0].predicted_ids) <= 6


def test_the_rope_base_is_really_changed(folder: Path, runner: Runner) -> None:
    other = load(folder, rope_theta=1e8)
    before = runner.backend.decoder.rotary_emb.inv_freq
    after = other.backend.decoder.rotary_emb.inv_freq
    size = TEXT["hidden_size"] // TEXT["num_attention_heads"]
    wanted = 1e8 ** -(torch.arange(0, size, 2, dtype=torch.float32) / size)
    torch.testing.assert_close(after, wanted)
    assert after.dtype == torch.float32 and not torch.equal(before, after)
    assert other.backend.fingerprint != runner.backend.fingerprint
    prompts = cells(Target("ok"))
    changed = [
        one.answer_logprobs != two.answer_logprobs
        for one, two in zip(run(runner, prompts), run(other, prompts), strict=True)
    ]
    assert all(changed)
    # The tower knows no RoPE: frames encoded for one base serve the others.
    assert other.backend.frames_fingerprint == runner.backend.frames_fingerprint
    assert other.frames.frames_encoded == 0


@pytest.mark.parametrize(("decoder", "template"), [("mistral", "mistral"), ("llama", "vicuna"), ("qwen2", "qwen_1_5")])
def test_the_template_follows_the_decoder(decoder: str, template: str, tmp_path: Path) -> None:
    backend = load(write_llava_next_video(tmp_path / "model", decoder)).backend
    assert backend.template.name == template and backend.max_length == TEXT["max_position_embeddings"]
    assert load(tmp_path / "model", template="plain", max_length=9).backend.template.name == "plain"


@pytest.mark.parametrize("kind", ["qwen2", "llama", "mistral"])
def test_text_only_models_answer_and_refuse_pictures(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = write_text_model(tmp_path / "text", kind)
    runner = load(folder, template="plain")
    own = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)("Once upon a time").input_ids])
    out = own.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=7, do_sample=False)[0, ids.shape[1] :]
    prompt = build_prompt("Once upon a time", [], Generate(max_new_tokens=7), runner.backend.template, max_frames=1)
    end = letters().eos_token_id
    assert run(runner, [prompt])[0].predicted_ids == [token for token in out.tolist() if token != end]
    for visual in (film(), picture(9, 9)):
        shown = build_prompt("What?", [visual], Generate(), runner.backend.template, max_frames=4)
        with pytest.raises(ValueError, match="is a text-only model and cannot be shown"):
            run(runner, [shown])
