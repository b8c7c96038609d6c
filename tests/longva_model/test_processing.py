"""Prompts and visuals to inputs: tokens around placeholders, who gets which visual, templates, refusals."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lmms_requests import film, picture
from PIL import Image

from longva_model import LongVAProcessor
from longva_model.prompts.chat_templates import CHAT_TEMPLATES
from vniah.prompts import TEMPLATES


@pytest.fixture(scope="module")
def processor(tiny_config: Callable[..., Any], tiny_processor: Callable[..., Any]) -> Any:
    return tiny_processor(tiny_config())


def kinds(processor: Any, inputs: Any, row: int = 0) -> str:
    """Ids as a string: letters, I for each run of image tokens, V for videos, . for padding."""
    names = {processor.image_token_index: "I", processor.video_token_index: "V", processor.tokenizer.pad_token_id: "."}
    ids = inputs["input_ids"][row]
    out = "".join(names.get(int(i)) or processor.tokenizer.decode([int(i)]) for i in ids)
    while "II" in out or "VV" in out or ".." in out:
        out = out.replace("II", "I").replace("VV", "V").replace("..", ".")
    return out


def test_text_around_a_placeholder_is_tokenised_by_itself(shared: Path) -> None:
    processor = LongVAProcessor.from_pretrained(shared / "parity/LongVA-tiny-unires")
    tokenizer = processor.tokenizer
    before, after = "the wh", "at is this?"
    ids = processor(text=f"{before}<image>{after}", images=[picture()])["input_ids"][0]
    own = [tokenizer(part, add_special_tokens=False).input_ids for part in (before, after)]
    assert [i for i in ids if i < 2**29] == own[0] + own[1] != tokenizer(before + after).input_ids


def test_each_prompt_gets_its_visuals(processor: Any) -> None:
    images, videos = [picture(), picture(28, 90)], [film(2), film(4)]
    one = processor(text="a<image>b<video>c<image>d<video>", images=images, videos=videos, return_tensors="pt")
    assert kinds(processor, one) == "aIbVcIdV"
    assert one["image_sizes"].tolist() == [[40, 50], [90, 28]] and one["video_num_frames"].tolist() == [2, 4]
    dealt = processor(text=["<image>x", "<video>", "<image><video>"], images=images, videos=videos, return_tensors="pt")
    assert [kinds(processor, dealt, i) for i in range(3)] == [".Ix", ".V", "IV"]
    own = processor(
        text=["<image>x", "<image>y"], images=[[picture()], []], videos=[[], [film(3)]], return_tensors="pt"
    )
    assert [kinds(processor, own, i) for i in range(2)] == ["Ix", ".Vy"]
    assert own["pixel_values"].shape[0] == own["pixel_values_videos"].shape[0] == 1


def test_image_stands_for_a_video_where_there_are_no_images(processor: Any) -> None:
    frames = film(3)
    for videos in (
        [frames],
        frames,
        [list(map(Image.fromarray, frames))],
        list(map(Image.fromarray, frames)),
        [torch.from_numpy(frames)],
    ):
        inputs = processor(text="<image>\nq", videos=videos, return_tensors="pt")
        assert kinds(processor, inputs) == "V\nq"
        assert inputs["pixel_values_videos"].shape == (1, 3, 3, 28, 28)
        assert torch.equal(
            inputs["pixel_values_videos"], processor(videos=[frames], return_tensors="pt")["pixel_values_videos"]
        )


class Film:
    """Frames by index, as haystacks give them."""

    fingerprint = "film"

    def __init__(self, frames: np.ndarray) -> None:
        self.all = frames

    def __len__(self) -> int:
        return len(self.all)

    def frames(self, start: int, stop: int) -> np.ndarray:
        return self.all[start:stop]


def test_frames_are_sampled_as_the_released_code_does(processor: Any) -> None:
    frames = film(11)
    chosen = frames[np.linspace(0, 10, 4, dtype=int)]
    expected = processor(videos=[chosen], return_tensors="np")["pixel_values_videos"]
    for source in (frames, list(map(Image.fromarray, frames)), Film(frames)):
        got = processor(videos=[source], num_frames=4, return_tensors="np")["pixel_values_videos"]
        assert np.array_equal(got, expected)
    assert processor(videos=[Film(frames)], num_frames=50)["pixel_values_videos"].shape[1] == 11


def test_pad_and_crop(processor: Any) -> None:
    frames = film(3)
    crop, pad = (processor(videos=[frames], preprocess=mode)["pixel_values_videos"] for mode in ("crop", "pad"))
    assert not np.array_equal(crop, pad)
    assert np.array_equal(processor(videos=[frames])["pixel_values_videos"], crop)
    with pytest.raises(ValueError, match="crop, pad"):
        processor(videos=[frames], preprocess="fit")


@pytest.mark.parametrize(
    ("text", "images", "videos", "words"),
    [
        ("<image>", 0, 0, "1 <image> or <video> placeholders, but 0 images and 0 videos"),
        ("no placeholder", 1, 0, "0 <image> and 0 <video> placeholders, but 1 images"),
        ("<image><image>", 1, 0, "2 <image> and 0 <video> placeholders, but 1 images"),
        ("<video>", 1, 0, "0 <image> and 1 <video>"),
        ("<image>", 1, 1, "1 <image> and 0 <video> placeholders, but 1 images and 1 videos"),
        ("<image><image>", 1, 1, "2 <image> and 0 <video>"),
        ("<video><video>", 0, 1, "0 <image> and 2 <video> placeholders, but 0 images and 1 videos"),
        (["<image>", "<image>"], 3, 0, "2 prompts have 2 <image>"),
    ],
)
def test_numbers_that_do_not_match_are_said(processor: Any, text: Any, images: int, videos: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        processor(text=text, images=[picture()] * images or None, videos=[film(3)] * videos or None)


def test_lists_for_another_number_of_prompts_are_refused(processor: Any) -> None:
    with pytest.raises(ValueError, match="3 prompts, but there are 2"):
        processor(text=["<image>", "<image>"], images=[[picture()], [picture()], []])


def test_batches_are_padded_on_the_left_unless_asked_otherwise(processor: Any) -> None:
    text = ["abc", "a"]
    left = processor(text=text, return_tensors="pt")
    assert left["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]] and kinds(processor, left, 1) == ".a"
    right = processor(text=text, padding_side="right", pad_to_multiple_of=4, return_tensors="np")
    assert right["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert [len(row) for row in processor(text=text, padding=False)["input_ids"]] == [3, 1]
    longer = processor(text=text, padding="max_length", max_length=6, return_tensors="pt")
    assert longer["input_ids"].shape == (2, 6)


def test_nothing_is_ever_cut(processor: Any) -> None:
    tokens = processor.visual_layout.num_image_tokens((50, 40)) + 2
    inputs = processor(text="<image>ab", images=[picture()], truncation=True, max_length=tokens)
    assert len(inputs["input_ids"][0]) == tokens
    with pytest.raises(ValueError, match=f"{tokens} tokens long, above max_length=5"):
        processor(text="<image>ab", images=[picture()], truncation=True, max_length=5)


def test_images_come_as_pil_arrays_and_files(processor: Any, tmp_path: Path) -> None:
    image = picture()
    image.save(tmp_path / "a.png")
    expected = processor(images=[image])["pixel_values"]
    for source in (np.asarray(image), str(tmp_path / "a.png"), tmp_path / "a.png", image.convert("RGBA")):
        assert np.array_equal(processor(images=[source])["pixel_values"], expected)
    assert np.array_equal(processor(images=image)["pixel_values"], expected)
    assert processor(images=[np.zeros((5, 9), np.uint8)])["image_sizes"].tolist() == [[5, 9]]


@pytest.mark.parametrize("size", [(1, 1), (2000, 10), (3, 700)])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "I;16"])
def test_odd_images_go_all_the_way(size: tuple[int, int], mode: str, processor: Any) -> None:
    image = Image.new("L", size, 200)
    image = Image.fromarray(np.full((size[1], size[0]), 51_400, np.uint16)) if mode == "I;16" else image.convert(mode)
    inputs = processor(text="<image>", images=[image], return_tensors="pt")
    assert len(inputs["input_ids"][0]) == processor.visual_layout.num_image_tokens(size)
    assert inputs["image_sizes"].tolist() == [[size[1], size[0]]] and inputs["pixel_values"].isfinite().all()


def test_broken_images_and_empty_videos_are_said(processor: Any, tmp_path: Path) -> None:
    (tmp_path / "no.png").write_bytes(b"not an image at all")
    buffer = io.BytesIO()
    picture(200, 200).save(buffer, "PNG")
    (tmp_path / "cut.png").write_bytes(buffer.getvalue()[:5000])
    for source, words in (
        (tmp_path / "no.png", "no image that PIL can read"),
        (tmp_path / "cut.png", "corrupt or cut short"),
        (np.zeros((4, 4), np.float32), "float32"),
        (7, "got int"),
    ):
        with pytest.raises(ValueError, match=words):
            processor(text="<image>", images=[source])
    with pytest.raises(FileNotFoundError):
        processor(text="<image>", images=[tmp_path / "absent.png"])
    videos: list[tuple[Any, str]] = [(film(0), "empty video"), ([], "empty video"), (3.5, "got float")]
    for video, words in videos:
        with pytest.raises(ValueError, match=words):
            processor(text="<video>", videos=[video])


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_one_turn_of_a_template_is_the_prompt_of_the_benchmark(name: str, processor: Any) -> None:
    template = TEMPLATES[name]
    content = [{"type": "video"}, {"type": "text", "text": "What is it?"}]
    for message in (content, "<video>\nWhat is it?"):
        text = processor.apply_chat_template([{"role": "user", "content": message}], name, add_generation_prompt=True)
        assert text == f"{template.pre}<video>\nWhat is it?{template.post}"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "qwen_1_5",
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<image> <image>\nQ1<|im_end|>\n"
            "<|im_start|>assistant\nA1<|im_end|>\n<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\nA2<|im_end|>\n",
        ),
        ("vicuna", "<s>Be brief. USER: <image> <image>\nQ1 ASSISTANT: A1</s>USER: Q2 ASSISTANT: A2</s>"),
        ("mistral", "<s>[INST] <image> <image>\nQ1 [/INST] A1</s>[INST] Q2 [/INST] A2</s>"),
    ],
)
def test_conversations(name: str, expected: str, processor: Any) -> None:
    visuals = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Q1"}]
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": visuals},
        {"role": "assistant", "content": "A1"},
        {"role": "user", "content": [{"type": "text", "text": "Q2"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A2"}]},
    ]
    if name == "mistral":  # it has no place for a system prompt
        with pytest.raises(Exception, match="no place for a system prompt"):
            processor.apply_chat_template(talk, name)
        del talk[0]
    assert processor.apply_chat_template(talk, name) == expected


def test_chat_messages_carry_their_visuals(processor: Any) -> None:
    frames, image = film(3), picture()
    talk = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": image},
                {"type": "video", "video": frames},
                {"type": "text", "text": "Q"},
            ],
        }
    ]
    got = processor.apply_chat_template(
        talk, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    prompt = processor.apply_chat_template(talk, add_generation_prompt=True)
    expected = processor(text=prompt, images=[image], videos=[frames], return_tensors="pt")
    assert "<image> <video>\nQ" in prompt and got.keys() == expected.keys()
    assert all(torch.equal(got[key], expected[key]) for key in expected)
    two = processor.apply_chat_template([talk, talk], tokenize=True, return_dict=True, return_tensors="pt")
    assert two["pixel_values"].shape[0] == 2


def test_answers_can_be_told_apart_for_training(processor: Any) -> None:
    talk = [
        {"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "Q"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
    ]
    out = processor.apply_chat_template(talk, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    ids = [i for i, keep in zip(out["input_ids"][0], out["assistant_masks"][0], strict=True) if keep]
    assert processor.tokenizer.decode(ids).replace(" ", "") == "red<|im_end|>\n"


def test_offsets_point_into_the_prompt(processor: Any) -> None:
    prompt = "ab<image>c"
    out = processor(text=prompt, images=[picture()], return_offsets_mapping=True)
    offsets = out["offset_mapping"][0]
    assert len(offsets) == len(out["input_ids"][0])
    assert {prompt[a:b] for a, b in offsets} == {"a", "b", "<image>", "c"}


def test_token_types_tell_text_images_and_videos_apart(processor: Any) -> None:
    out = processor(text="a<image><video>", images=[picture()], videos=[film(3)], return_mm_token_type_ids=True)
    types = out["mm_token_type_ids"][0]
    counts = processor.visual_layout.num_image_tokens((50, 40)), processor.visual_layout.num_video_tokens(3)
    assert types == [0, *[1] * counts[0], *[2] * counts[1]]
    with pytest.raises(TypeError, match="preproces"):
        processor(text="a", preproces="pad")


def test_video_files_are_read_and_sampled(processor: Any, tmp_path: Path) -> None:
    import av

    from vniah.haystack.opening import open_video

    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5, width=64, height=48, pix_fmt="yuv420p")
        for level in range(0, 250, 10):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    every = open_video(path, 25).frames(0, 25)
    expected = processor(videos=[every[np.linspace(0, 24, 4, dtype=int)]])["pixel_values_videos"]
    assert np.array_equal(processor(videos=[path], num_frames=4)["pixel_values_videos"], expected)
    talk = [{"role": "user", "content": [{"type": "video", "path": str(path)}, {"type": "text", "text": "Q"}]}]
    out = processor.apply_chat_template(talk, tokenize=True, return_dict=True, processor_kwargs={"num_frames": 4})
    assert np.array_equal(out["pixel_values_videos"], expected)
    assert processor(text="<video>", videos=str(path))["pixel_values_videos"].shape[1] == 25


def test_bos_is_put_in_front_once_where_the_tokenizer_has_that_habit(tiny_config: Callable[..., Any]) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<s>": 0, "a": 1, "b": 2, "?": 3}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", pad_token="?")
    processor = LongVAProcessor.from_config(tiny_config("llama"), tokenizer)
    for text in ("a <image> b", "<s> a <image> b"):
        ids = processor(text=text, images=[picture()])["input_ids"][0]
        assert [i for i in ids if i < 9] == [0, 1, 2]
    assert processor(text="a", add_special_tokens=False)["input_ids"] == [[1]]


@pytest.mark.parametrize("merge", ["unires", "spatial_unpad"])
def test_saved_and_loaded_it_is_the_same(
    merge: str, tmp_path: Path, tiny_config: Callable[..., Any], letter_tokenizer: Any
) -> None:
    from transformers import AutoProcessor

    config = tiny_config("mistral", mm_patch_merge_type=merge)
    processor = LongVAProcessor.from_config(config, letter_tokenizer, image_mean=[0.1, 0.2, 0.3], preprocess="pad")
    processor.save_pretrained(tmp_path)
    config.save_pretrained(tmp_path)
    for again in (LongVAProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(again) is LongVAProcessor and again.visual_layout == processor.visual_layout == config.layout
        assert again.to_dict() == processor.to_dict() and again.chat_template == CHAT_TEMPLATES["mistral"]
        given: dict[str, Any] = {"text": "<image>ab", "images": [picture()], "return_tensors": "pt"}
        ours, theirs = processor(**given), again(**given)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
