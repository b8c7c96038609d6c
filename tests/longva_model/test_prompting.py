"""Prompts as segments: where visuals stand, which template is around them, what is refused; visuals of any kind."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage
from video_files import cut, write_video

from longva_model.pictures.opening import ArrayFrames, sample_indices
from longva_model.prompts.prompting import Prompt, VisualPart, build_chat, build_prompt, visual_part
from vniah.contract.requests import Frames, Generate, Image, Segment, Target, Text, Tokens
from vniah.haystack import open_video
from vniah.prompts import MISTRAL, NANO, PLAIN, QWEN_1_5, VICUNA, PromptTemplate

LEAF = Generate()
PRE, POST = QWEN_1_5.pre, QWEN_1_5.post


def picture(seed: int = 0) -> PILImage.Image:
    return PILImage.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8))


def film(frames: int = 3) -> np.ndarray:
    return np.full((frames, 4, 6, 3), 7, np.uint8)


def outline(prompt: Prompt) -> list[str]:
    """Texts as they are, I for an image, V for a video, N for a needle, T for tokens."""

    def one(segment: Segment) -> str:
        if isinstance(segment, Text):
            return segment.text
        if isinstance(segment, Image):
            return "N" if segment.as_frame else "I"
        return "V" if isinstance(segment, Frames) else "T"

    return [one(segment) for segment in prompt.request.segments]


def simple(text: str, visuals: Sequence[Any], template: PromptTemplate = QWEN_1_5) -> list[str]:
    return outline(build_prompt(text, visuals, LEAF, template, max_frames=8))


def chat(*turns: tuple[str, Any], template: PromptTemplate = QWEN_1_5) -> list[str]:
    messages = [{"role": role, "content": content} for role, content in turns]
    return outline(build_chat(messages, LEAF, template, max_frames=8))


def image(seed: int = 0) -> dict[str, Any]:
    return {"type": "image", "url": picture(seed)}


def words(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def test_visuals_come_first_unless_placeholders_say_where() -> None:
    assert simple("Q", []) == [PRE + "Q" + POST]
    assert simple("Q", [picture()]) == [PRE, "I", "\nQ" + POST]
    assert simple("Q", [picture(), film(), picture(1)]) == [PRE, "I", " ", "V", " ", "I", "\nQ" + POST]
    assert simple("A <image> B", [film()]) == [PRE + "A ", "V", " B" + POST]
    assert simple("<image>\nQ", [picture()]) == simple("Q", [picture()])
    assert simple("<video><image>Q", [film(), picture()]) == [PRE, "V", "I", "Q" + POST]


@pytest.mark.parametrize(
    ("text", "visuals", "said"), [("<image> <image>", 1, "2 placeholders.*1 visuals"), ("<image>", 0, "1 plac.*0 vis")]
)
def test_placeholders_and_visuals_must_match(text: str, visuals: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        simple(text, [picture()] * visuals)
    with pytest.raises(ValueError, match=said):
        chat(("user", [*[image()] * visuals, words(text)]))


def test_a_message_keeps_the_order_of_its_items() -> None:
    assert chat(("user", "Q")) == [PRE + "Q" + POST]
    assert chat(("user", [image(), words("Q")])) == simple("Q", [picture()])
    assert chat(("user", [words("A"), image(), words("B")])) == [PRE + "A", "I", "\nB" + POST]
    assert chat(("user", [image(), image(1), words("\nQ")])) == [PRE, "I", " ", "I", "\nQ" + POST]
    assert chat(("user", [words("A"), words("B"), image()])) == [PRE + "AB", "I", POST]
    assert chat(("user", [{"type": "video", "video": film()}, words("Q")])) == [PRE, "V", "\nQ" + POST]
    assert chat(("user", [{"type": "image", "image": picture()}, words("Q")])) == [PRE, "I", "\nQ" + POST]


def test_a_text_with_placeholders_says_where_the_visuals_of_its_message_stand() -> None:
    """lmms-eval's own messages have every visual first, whatever the task's text says."""
    assert chat(("user", [image(), image(1), words("A <image> B <image>")])) == [PRE + "A ", "I", " B ", "I", POST]


@pytest.mark.parametrize("template", [QWEN_1_5, MISTRAL, VICUNA, PLAIN, NANO])
def test_earlier_turns_are_one_text_with_their_neighbours(template: PromptTemplate) -> None:
    turns: list[tuple[str, Any]] = [("user", [image(), words("A")]), ("assistant", "B"), ("user", "C")]
    said = chat(*turns, template=template)
    after = "\nA" + template.post + template.answer + "B" + template.between + "C" + template.post
    assert said == [*([template.pre] if template.pre else []), "I", after]


def test_a_system_prompt_opens_the_conversation() -> None:
    assert chat(("system", "S"), ("user", "Q")) == [PRE.replace("You are a helpful assistant.", "S") + "Q" + POST]
    assert chat(("system", [words("S")]), ("user", "Q"))[0].startswith("<|im_start|>system\nS<|im_end|>")
    with pytest.raises(ValueError, match="a prompt is empty"):
        build_prompt("", [], LEAF, PLAIN, max_frames=4)
    with pytest.raises(ValueError, match="no place for a system prompt"):
        chat(("system", "S"), ("user", "Q"), template=MISTRAL)


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([], "end with a user turn"),
        ([("user", "Q"), ("assistant", "A")], "end with a user turn"),
        ([("assistant", "A"), ("user", "Q")], "role 'assistant'"),
        ([("user", "Q"), ("user", "Q")], "role 'user'"),
        ([("user", "Q"), ("tool", "A"), ("user", "Q")], "role 'tool'"),
        ([("user", [{"type": "audio", "url": "a.wav"}])], "content of type 'audio'"),
        ([("user", [{"type": "video", "url": "a.mp4", "start_time": 3.0}, words("Q")])], "start_time=3.0"),
        ([("user", [{"type": "image", "url": None}, words("Q")])], "cannot show a NoneType"),
    ],
)
def test_bad_conversations_are_refused(turns: list[tuple[str, Any]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        chat(*turns)


class Needle:
    """A visual prompt as V-NIAH hands it over: haystack, needle, haystack."""

    preprocess = "pad"

    def segments(self) -> tuple[Segment, ...]:
        return (Frames("hay", 0, 2), Image("needle"), Frames("hay", 2, 4))

    def media(self) -> dict[str, Any]:
        return {"hay": film(4), "needle": picture()}


class Book:
    """A raw prompt as text NIAH hands it over."""

    preprocess = "pad"
    template = "none"

    def segments(self) -> tuple[Segment, ...]:
        return (Text("Once"), Tokens("book", 0, 9), Text("?"))

    def media(self) -> dict[str, Any]:
        return {"book": None}


def test_each_string_of_a_needle_prompt_stands_alone() -> None:
    """As the reference tokenises them (section 3): opening, question, closing; no space before a frame."""
    prompt = build_prompt("\nWhere?", [Needle()], Target("there"), QWEN_1_5, max_frames=2)
    assert outline(prompt) == [PRE, "V", "N", "V", "\nWhere?", POST]
    assert prompt.beyond_context and prompt.preprocess == {"hay": "pad", "needle": "pad"} and not prompt.videos
    assert simple("Where?", [Needle()], MISTRAL) == ["<s>[INST]", "V", "N", "V", "\nWhere?", " [/INST]"]
    assert simple("Where?", [Needle()], PLAIN) == ["V", "N", "V", "\nWhere?"]


def test_a_raw_prompt_has_no_template_but_the_first_mark() -> None:
    assert simple("ignored", [Book()]) == ["Once", "T", "?"]
    assert simple("ignored", [Book()], MISTRAL) == ["<s>", "Once", "T", "?"]


def test_an_ordinary_video_is_cropped_and_known_as_a_video() -> None:
    prompt = build_prompt("Q", [film(), picture()], LEAF, QWEN_1_5, max_frames=8)
    (source,) = prompt.videos
    assert prompt.preprocess == {source: "crop"} and not prompt.beyond_context
    assert set(prompt.media) == {one.source for one in prompt.request.segments if not isinstance(one, Text)}


# What may be shown to the model, and how it is read: images of any mode, videos however they come.


RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def shown(visual: Any, max_frames: int = 8) -> Any:
    """The image or source that a visual becomes."""
    (item,) = visual_part(visual, max_frames).media.values()
    return item


def source(part: VisualPart) -> str:
    (segment,) = part.segments
    assert isinstance(segment, (Frames, Image))
    return segment.source


def test_the_same_picture_is_the_same_source_however_it_comes(tmp_path: Path) -> None:
    picture = PILImage.fromarray(RGB)
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "no_suffix", format="png")
    forms: list[Any] = [
        picture,
        RGB,
        str(tmp_path / "a.png"),
        tmp_path / "a.png",
        tmp_path / "no_suffix",
        {"type": "image", "url": str(tmp_path / "a.png")},
    ]
    sources = {source(visual_part(form, 8)) for form in forms}
    assert len(sources) == 1
    assert source(visual_part(PILImage.fromarray(RGB[::-1].copy()), 8)) not in sources
    for form in forms:
        np.testing.assert_array_equal(np.asarray(shown(form)), RGB)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA", "I;16", "I", "F"])
def test_images_of_any_mode_become_rgb(mode: str) -> None:
    if mode.startswith("I"):
        image = PILImage.fromarray((RGB[..., 0].astype(np.uint16) << 8).astype(np.uint16)).convert(mode)
    else:
        image = PILImage.fromarray(RGB).convert(mode)
    rgb = shown(image)
    assert rgb.mode == "RGB" and rgb.size == (9, 6)
    if mode.startswith("I"):
        np.testing.assert_array_equal(np.asarray(rgb)[..., 0], RGB[..., 0])


def test_palettes_tell_images_of_equal_indices_apart() -> None:
    one = PILImage.fromarray(RGB[..., 0] // 128, mode="L").convert("P")
    other = one.copy()
    one.putpalette([0, 0, 0, 255, 0, 0])
    other.putpalette([0, 0, 0, 0, 255, 0])
    assert source(visual_part(one, 8)) != source(visual_part(other, 8))


def test_an_image_is_turned_upright(tmp_path: Path) -> None:
    exif = PILImage.Exif()
    exif[0x0112] = 6  # lies on its side
    PILImage.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    assert shown(tmp_path / "a.png").size == shown(PILImage.open(tmp_path / "a.png")).size == (6, 9)


def test_extreme_sizes_are_images_too() -> None:
    assert shown(PILImage.new("RGB", (1, 1))).size == (1, 1)
    assert shown(PILImage.new("L", (20_000, 100))).size == (20_000, 100)


def test_broken_and_missing_files_are_named(tmp_path: Path) -> None:
    out = io.BytesIO()
    PILImage.fromarray(np.random.default_rng(1).integers(0, 256, (90, 90, 3), dtype=np.uint8)).save(out, "jpeg")
    (tmp_path / "short.jpg").write_bytes(out.getvalue()[:400])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "text.mp4").write_text("no film")
    (tmp_path / "text").write_text("nothing at all")
    for name in ("short.jpg", "text.png", "text.mp4", "text"):
        with pytest.raises(ValueError, match=name):
            visual_part(tmp_path / name, 8)
    for name in ("gone.jpg", "gone.mp4", "gone"):
        with pytest.raises(FileNotFoundError, match=name):
            visual_part(tmp_path / name, 8)


def test_videos_are_sampled_evenly_and_alike(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", num_frames=11)
    every = open_video(path, 100).frames(0, 11)
    wanted = every[[0, 3, 6, 10]]
    listed = [PILImage.fromarray(frame) for frame in every]
    for form in (path, str(path), {"type": "video", "path": str(path)}, every, listed, tuple(listed)):
        part = visual_part(form, 4)
        (segment,) = part.segments
        assert segment == Frames(source(part), 0, 4)
        assert part.is_video and set(part.preprocess.values()) == {"crop"}
        np.testing.assert_array_equal(shown(form, 4).frames(0, 4), wanted)
    assert len(shown(path, 99)) == len(shown(every, 99)) == 11
    assert source(visual_part(every, 4)) == source(visual_part(listed, 4)) != source(visual_part(every, 5))


def test_sampling_is_linspace_with_first_and_last() -> None:
    assert sample_indices(100, 5) == [0, 24, 49, 74, 99]
    assert sample_indices(3, 5) == [0, 1, 2]
    assert sample_indices(7, 1) == [0]


@pytest.mark.parametrize(
    ("visual", "said"),
    [
        (np.zeros((0, 4, 4, 3), np.uint8), "no frames"),
        (np.zeros((2, 4, 4, 3), np.float32), "uint8 of shape .*float32"),
        (np.zeros((2, 4, 4, 4), np.uint8), r"\(2, 4, 4, 4\)"),
        ([PILImage.new("RGB", (4, 4)), PILImage.new("RGB", (5, 4))], r"one size.*\(4, 4\), \(5, 4\)"),
        ([], "cannot show a list"),
        (3, "cannot show a int"),
        ({"array": [0.1], "sampling_rate": 16_000}, "array, sampling_rate.*expected"),
        ({"type": "video", "path": "a.mp4", "video_start": 2, "video_end": 5}, "video_start=2, video_end=5"),
    ],
)
def test_what_cannot_be_shown_is_said(visual: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        visual_part(visual, 8)


def test_a_truncated_video_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"broken\.mp4"):
        part = visual_part(cut(write_video(tmp_path / "broken.mp4", num_frames=40), 0.3), 8)
        shown_source = next(iter(part.media.values()))
        shown_source.frames(0, len(shown_source))


def test_frames_in_memory_are_told_apart_by_content_and_shape() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3), dtype=np.uint8)
    assert ArrayFrames(frames).fingerprint == ArrayFrames(frames.copy()).fingerprint
    others = [frames[::-1], frames.reshape(3, 6, 4, 3), frames[:2]]
    assert len({ArrayFrames(one).fingerprint for one in (frames, *others)}) == 4
