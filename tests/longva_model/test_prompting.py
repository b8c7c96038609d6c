"""Prompts as segments: where visuals stand, which template is around them, what is refused. No model, no tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from longva_model.prompts.prompting import Prompt, build_chat, build_prompt
from vniah.contract.requests import Frames, Generate, Image, Segment, Target, Text, Tokens
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
