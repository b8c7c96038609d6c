"""The model on tiny random backbones: batches, caches, generation, training switches and refusals."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lmms_requests import film, picture
from transformers import AutoModelForCausalLM

from longva_model.renamed import cache_keyword, enable_checkpointing

BACKBONES = ("qwen2", "llama", "mistral")
MERGES = ("unires", "spatial_unpad", "flat")


@pytest.fixture(scope="module", params=MERGES)
def pair(request: pytest.FixtureRequest, tiny_model: Callable[..., Any], tiny_processor: Callable[..., Any]) -> Any:
    model = tiny_model(mm_patch_merge_type=request.param)
    return model, tiny_processor(model.config)


@pytest.fixture
def tiny(tiny_model: Callable[..., Any], tiny_processor: Callable[..., Any]) -> Any:
    model = tiny_model()
    return model, tiny_processor(model.config)


def count_tiles(model: Any) -> list[int]:
    """How many tiles each pass through the tower has, appended as they come."""
    seen: list[int] = []
    model.vision_tower.embeddings.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    return seen


@pytest.mark.parametrize("text_type", BACKBONES)
def test_cache_and_left_padded_batch_give_what_single_prompts_give(
    text_type: str, tiny_model: Callable[..., Any], tiny_processor: Callable[..., Any]
) -> None:
    model = tiny_model(text_type)
    processor = tiny_processor(model.config)
    prompts = ["<image>\nhow many?", "Look: <video> and <image> <image>.", "only words"]
    images = [[picture(50, 40)], [picture(28, 90, 2), picture(10, 10, 3)], []]
    videos = [[], [film(3)], []]
    batch = processor(text=prompts, images=images, videos=videos, return_tensors="pt")
    with torch.inference_mode():
        batched = model(**batch, logits_to_keep=1).logits[:, 0]
        out = model.generate(**batch, max_new_tokens=5, min_new_tokens=5, do_sample=False)
        for i, prompt in enumerate(prompts):
            single = processor(text=prompt, images=images[i] or None, videos=videos[i] or None, return_tensors="pt")
            logits = model(**single).logits[0]
            torch.testing.assert_close(batched[i], logits[-1], atol=1e-4, rtol=1e-4)
            ids = single["input_ids"]
            for _ in range(5):  # greedy without a cache
                grown = {**single, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
                ids = torch.cat([ids, model(**grown, logits_to_keep=1).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
            assert out[i, -5:].tolist() == ids[0, -5:].tolist()
            assert torch.equal(
                out[i][batch["attention_mask"].shape[1] - single["input_ids"].shape[1] :][: ids.shape[1]], ids[0]
            )


@pytest.mark.parametrize("text_type", BACKBONES)
def test_text_alone_is_the_plain_decoder(text_type: str, tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(text_type)
    plain = AutoModelForCausalLM.from_config(model.config.text_config).eval()
    weights = {f"model.{k}": v for k, v in model.language_model.state_dict().items()}
    plain.load_state_dict({**weights, "lm_head.weight": model.lm_head.weight})
    ids = torch.randint(0, 120, (2, 17), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(model(input_ids=ids).logits, plain(input_ids=ids).logits)


def test_tokens_of_a_visual_do_not_depend_on_its_company(pair: Any) -> None:
    model, processor = pair
    images = [picture(50, 40), picture(100, 20, 2), picture(28, 28, 3), picture(20, 90, 4)]
    with torch.inference_mode():
        together = processor(images=images, return_tensors="pt")
        all_images = model.model.encode_images(together["pixel_values"], together["image_sizes"])
        model.model.vision_batch_size = 3
        for image, tokens in zip(images, all_images, strict=True):
            alone = processor(images=[image], return_tensors="pt")
            torch.testing.assert_close(model.get_image_features(**alone), tokens, atol=1e-5, rtol=1e-5)
        frames = processor(videos=[film(7)], return_tensors="pt")["pixel_values_videos"][0]
        all_frames = model.encode_frames(frames)
        for i in range(7):
            torch.testing.assert_close(model.encode_frames(frames[i : i + 1])[0], all_frames[i], atol=1e-5, rtol=1e-5)
    model.model.vision_batch_size = 32


def test_visual_tokens_are_as_many_as_the_processor_says(pair: Any) -> None:
    model, processor = pair
    layout = model.config.layout
    for size in ((50, 40), (1, 1), (400, 20), (28, 56), (300, 300)):
        inputs = processor(images=[picture(*size)], return_tensors="pt")
        assert len(model.get_image_features(**inputs)) == layout.num_image_tokens(size)
        flat = {**inputs, "pixel_values": inputs["pixel_values"][0]}
        assert torch.equal(model.get_image_features(**flat), model.get_image_features(**inputs))
    inputs = processor(videos=[film(5)], return_tensors="pt")
    assert len(model.get_video_features(**inputs)) == layout.num_video_tokens(5)


def test_unires_against_the_plain_form(tiny: Any) -> None:
    model, processor = tiny
    inputs = processor(images=[picture(100, 60)], return_tensors="pt")
    grid = model.config.layout.grid((100, 60))
    with torch.inference_mode():
        hidden = model.vision_tower(inputs["pixel_values"][0], output_hidden_states=True).hidden_states[-2][:, 1:]
        maps = model.model.multi_modal_projector(hidden)[1:].view(grid.num_tiles, 4, 4, 32)
        pooled = maps.view(grid.num_tiles, 2, 2, 2, 2, 32).mean((2, 4))
        torch.testing.assert_close(model.get_image_features(**inputs), pooled.reshape(-1, 32), atol=1e-5, rtol=1e-5)


def test_neither_the_whole_image_nor_black_tiles_are_encoded_again(
    tiny_model: Callable[..., Any], tiny_processor: Callable[..., Any]
) -> None:
    model = tiny_model(image_grid_pinpoints=[[140, 140]])  # 25 tiles; a thin image touches one row of five
    processor = tiny_processor(model.config)
    inputs = processor(images=[picture(100, 20)], return_tensors="pt")
    seen = count_tiles(model)
    tokens = model.get_image_features(**inputs)
    assert sum(seen) == 5 + 1
    with torch.inference_mode():
        every = model.model.encode_tiles(inputs["pixel_values"][0, 1:])
        plain = (
            torch.nn.functional.avg_pool2d(every.view(25, 4, 4, 32).permute(0, 3, 1, 2), 2).flatten(2).transpose(1, 2)
        )
    torch.testing.assert_close(tokens, plain.reshape(-1, 32), atol=1e-5, rtol=1e-5)


def test_the_tower_works_in_bounded_batches_and_stops_where_it_may(tiny: Any) -> None:
    model, processor = tiny
    model.model.vision_batch_size = 4
    seen, late = count_tiles(model), []
    model.vision_tower.encoder.layers[-1].register_forward_hook(lambda *_: late.append(1))
    model.vision_tower.post_layernorm.register_forward_hook(lambda *_: late.append(1))
    model.get_video_features(**processor(videos=[film(10)], return_tensors="pt"))
    assert seen == [4, 4, 2] and not late


def test_videos_of_several_lengths_in_one_batch(pair: Any) -> None:
    model, processor = pair
    inputs = processor(text=["<video>a", "<video>b"], videos=[film(2), film(5, 7)], return_tensors="pt")
    assert inputs["video_num_frames"].tolist() == [2, 5]
    with torch.inference_mode():
        both = model(**inputs, logits_to_keep=1).logits
        for i, frames in enumerate((film(2), film(5, 7))):
            alone = processor(text="<image>" + "ab"[i], videos=frames, return_tensors="pt")
            torch.testing.assert_close(model(**alone, logits_to_keep=1).logits[0], both[i], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"do_sample": True, "temperature": 0.7, "top_k": 5, "num_return_sequences": 2},
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
        {"num_beams": 2, "num_return_sequences": 2, "return_dict_in_generate": True, "output_scores": True},
    ],
)
def test_generation_options_meet_placeholders(options: dict[str, Any], tiny: Any, letter_tokenizer: Any) -> None:
    model, processor = tiny
    prompts, images = (
        ["<image>\nwhat?", "a <image> b <image>"],
        [picture(50, 40), picture(20, 20, 2), picture(60, 30, 3)],
    )
    inputs = processor(text=prompts, images=images, return_tensors="pt")
    torch.manual_seed(0)
    out = model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, **options)
    sequences = out if isinstance(out, torch.Tensor) else out.sequences
    copies = len(sequences) // 2
    length = inputs["input_ids"].shape[1]
    assert torch.equal(sequences[:, :length], inputs["input_ids"].repeat_interleave(copies, dim=0))
    assert sequences.shape[1] == length + 6 and int(sequences[:, length:].max()) < 120
    # Placeholders are skipped by the tokenizer; the prompt's own words are there.
    assert "\nwhat?" in processor.batch_decode(sequences)[0].replace(" ", "")


def test_logits_processors_see_ids_of_the_prompt_only(tiny: Any) -> None:
    model, processor = tiny
    inputs = processor(text="<image>zy", images=[picture(50, 40)], return_tensors="pt")
    seen: list[torch.Tensor] = []

    def look(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen.append(ids)
        return scores

    model.generate(**inputs, max_new_tokens=1, logits_processor=[look])
    assert set(seen[0][0].tolist()) == {i for i in inputs["input_ids"][0].tolist() if i < 120}


def test_beams_of_a_batch_equal_beams_of_each_prompt(tiny: Any) -> None:
    model, processor = tiny
    prompts, images = ["<image>\nwhat is it?", "<image>"], [picture(50, 40), picture(90, 20, 2)]
    batch = processor(text=prompts, images=images, return_tensors="pt")
    options = {"num_beams": 3, "max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    out = model.generate(**batch, **options)
    for i in range(2):
        alone = processor(text=prompts[i], images=[images[i]], return_tensors="pt")
        assert model.generate(**alone, **options)[0, -5:].tolist() == out[i, -5:].tolist()


def test_a_follow_up_needs_neither_the_visuals_nor_the_past_again(tiny: Any) -> None:
    model, processor = tiny
    inputs = processor(text="<image>\nwhat?", images=[picture(50, 40)], return_tensors="pt")
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    first = model.generate(**inputs, **options, return_dict_in_generate=True)
    ids = torch.cat([first.sequences, torch.tensor([[5, 6, 7]])], dim=1)
    mask = torch.ones_like(ids)
    whole = model.generate(**{**inputs, "input_ids": ids, "attention_mask": mask}, **options)
    seen = count_tiles(model)
    cache = {"cache": first[cache_keyword(model.language_model)]}
    again = model.generate(input_ids=ids, attention_mask=mask, **cache, **options)
    assert torch.equal(again, whole) and not seen


def test_logits_only_where_asked(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model()
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        every = model(input_ids=ids).logits
        torch.testing.assert_close(model(input_ids=ids, logits_to_keep=3).logits, every[:, -3:])
        picked = torch.tensor([0, 7])
        torch.testing.assert_close(model(input_ids=ids, logits_to_keep=picked).logits, every[:, picked])
    assert every.shape == (1, 20, 120)


@pytest.mark.parametrize("merge", MERGES)
def test_gradient_checkpointing_changes_no_gradient(
    merge: str, tiny_model: Callable[..., Any], tiny_processor: Callable[..., Any]
) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model(mm_patch_merge_type=merge).train()
        if checkpointing:
            enable_checkpointing(model)
        inputs = tiny_processor(model.config)(
            text="<image>x<video>y", images=[picture(50, 40)], videos=[film(2)], return_tensors="pt"
        )
        labels = inputs["input_ids"].masked_fill(inputs["input_ids"] >= 120, -100)
        model(**inputs, labels=labels, use_cache=False).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert ("model.image_newline" in gradients[0]) == (merge == "spatial_unpad")
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_attention_implementation_reaches_both_parts(tiny: Any) -> None:
    model, processor = tiny
    inputs = processor(text="<image>x", images=[picture(50, 40)], return_tensors="pt")
    with torch.inference_mode():
        sdpa = model(**inputs).logits
        model.set_attn_implementation("eager")
        assert (
            model.vision_tower.config._attn_implementation
            == model.language_model.config._attn_implementation
            == "eager"
        )
        torch.testing.assert_close(model(**inputs).logits, sdpa, atol=1e-4, rtol=1e-4)
        out = model(**inputs, output_attentions=True, output_hidden_states=True)
    assert len(out.attentions) == 2 and len(out.hidden_states) == 3
    model.set_attn_implementation({"text_config": "sdpa"})
    assert (model.language_model.config._attn_implementation, model.vision_tower.config._attn_implementation) == (
        "sdpa",
        "eager",
    )


@pytest.mark.parametrize("name", ["longva_blockwise", "longva_ring"])
def test_our_attention_is_in_the_registry(name: str, tiny: Any, tmp_path: Path) -> None:
    from longva_model import LongVAForConditionalGeneration

    model, processor = tiny
    model.save_pretrained(tmp_path)
    ours = LongVAForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=name)
    assert ours.language_model.config._attn_implementation == name
    inputs = processor(text="<image>x", images=[picture(50, 40)], return_tensors="pt")
    with torch.inference_mode():
        torch.testing.assert_close(ours(**inputs).logits, model(**inputs).logits, atol=1e-4, rtol=1e-4)
        assert torch.equal(ours.generate(**inputs, max_new_tokens=4), model.generate(**inputs, max_new_tokens=4))


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.bfloat16()])
def test_rope_frequencies_stay_fp32(cast: Callable[[Any], Any], tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(text={"rope_parameters": {"rope_type": "default", "rope_theta": 1e9}})
    exact = model.language_model.rotary_emb.inv_freq.clone()
    for part in (model, tiny_model().model):
        cast(part)
    assert model.dtype != torch.float32 and model.lm_head.weight.dtype == model.dtype
    frequencies = model.language_model.rotary_emb.inv_freq
    assert frequencies.dtype == torch.float32 and torch.equal(frequencies, exact)


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    ],
)
def test_rope_base_and_scaling_are_transformers_own(
    scaling: dict[str, Any] | None, tiny_config: Callable[..., Any], tiny_model: Callable[..., Any]
) -> None:
    from transformers import Qwen2Config, Qwen2Model

    rope = {"rope_type": "default", **(scaling or {}), "rope_theta": 5e5}
    model = tiny_model(text={"rope_parameters": rope, "max_position_embeddings": 64})
    plain = Qwen2Model(Qwen2Config(**model.config.text_config.to_dict())).eval()
    plain.load_state_dict(model.language_model.state_dict())
    ids = torch.randint(0, 120, (1, 60 if scaling is None else 200), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        torch.testing.assert_close(model.model(input_ids=ids).last_hidden_state, plain(input_ids=ids).last_hidden_state)
    assert model.config.rope_theta == 5e5
    assert model.config.context_length == (64 if scaling is None else 256)


def test_tied_embeddings(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(text={"tie_word_embeddings": True})
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_vocabulary_may_grow_without_touching_placeholders(tiny: Any) -> None:
    model, processor = tiny
    model.resize_token_embeddings(130)
    assert model.lm_head.weight.shape == (130, 32) and model.config.text_config.vocab_size == 130
    inputs = processor(text="<image>x", images=[picture(50, 40)], return_tensors="pt")
    assert model(**inputs).logits.shape[-1] == 130


def test_placeholders_and_tokens_that_do_not_match_are_refused(tiny: Any) -> None:
    model, processor = tiny
    inputs = processor(text="<image>x", images=[picture(50, 40)], return_tensors="pt")
    count = model.config.layout.num_image_tokens((50, 40))
    with pytest.raises(ValueError, match=f"{count} image placeholder tokens.*make 0 visual"):
        model(input_ids=inputs["input_ids"])
    with pytest.raises(ValueError, match=f"{count} image placeholder"):
        model.generate(input_ids=inputs["input_ids"])
    short = {**inputs, "input_ids": inputs["input_ids"][:, 1:], "attention_mask": inputs["attention_mask"][:, 1:]}
    with pytest.raises(ValueError, match=f"{count - 1} image placeholder tokens.*make {count} visual"):
        model(**short)
    with pytest.raises(ValueError, match="image_sizes"):
        model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"])
    with pytest.raises(ValueError, match="ask for 1 images of"):
        model.get_image_features(inputs["pixel_values"][:, :2], inputs["image_sizes"])
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="cannot be placed in inputs_embeds"):
        model(
            inputs_embeds=torch.zeros(1, 3, 32), pixel_values=inputs["pixel_values"], image_sizes=inputs["image_sizes"]
        )


def test_a_prompt_longer_than_the_context_names_both_lengths(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(text={"max_position_embeddings": 16})
    ids = torch.zeros(1, 17, dtype=torch.long)
    runs: list[Callable[[], Any]] = [lambda: model(input_ids=ids), lambda: model.generate(ids, max_new_tokens=1)]
    for run in runs:
        with pytest.raises(ValueError, match=r"17 tokens.*holds 16 .*max_position_embeddings=17"):
            run()
    mask = torch.ones_like(ids)
    mask[0, 0] = 0  # padding does not count
    assert model(input_ids=ids, attention_mask=mask).logits.shape[1] == 17
    assert model.generate(ids[:, :15], max_new_tokens=4, min_new_tokens=4).shape[1] == 19


_AUTO = """
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
config = AutoConfig.for_model("longva", text_config={"model_type": "qwen2", "vocab_size": 9, "hidden_size": 8,
    "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2},
    vision_config={"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2})
assert type(config) is longva_model.LongVAConfig
assert type(AutoModelForImageTextToText.from_config(config)) is longva_model.LongVAForConditionalGeneration
assert type(AutoModel.from_config(config)) is longva_model.LongVAModel
assert PROCESSOR_MAPPING[type(config)] is longva_model.LongVAProcessor
assert "LongVAProcessor" in dir(longva_model)
"""
_FREE = """
import sys
import longva_model, longva_model.pictures.layout
import longva_model.checkpoints.checkpoint, longva_model.checkpoints.layouts
assert not {"torch", "transformers"} & sys.modules.keys(), "heavy imports"
# Classes of models take seconds: a run is refused, and its processes meet, before.
import longva_model.run.runner, longva_model.checkpoints.convert
assert not {"longva_model.backbone", "longva_model.processing", "torchvision"} & sys.modules.keys(), "classes of models"
"""


@pytest.mark.parametrize(
    "first",
    [
        _FREE,
        pytest.param("import transformers.models.auto.modeling_auto\nimport longva_model", marks=pytest.mark.slow),
        pytest.param("from longva_model import LongVAProcessor\nimport longva_model", marks=pytest.mark.slow),
        pytest.param("from longva_model import LongVAModel\nimport longva_model", marks=pytest.mark.slow),
    ],
)
def test_auto_classes_find_it_whatever_is_imported_first(first: str) -> None:
    subprocess.run([sys.executable, "-c", first + _AUTO], check=True)
