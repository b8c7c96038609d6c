"""A prompt and its visuals as a ``Request``: where placeholders stand, which template is around them.

Follows the reference (section 1): "<image>" in the text marks a visual; without any, the visuals come
first, joined by a space, and the text starts on a new line. Each text piece is tokenised alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from longva_model.prompt_visuals import VisualPart, visual_part
from vniah.prompts import PromptTemplate, question_text
from vniah.requests import Leaf, Request, Segment, Text

PLACEHOLDER = "<image>"
_PLACEHOLDERS = (PLACEHOLDER, "<video>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A request with the media its segments name.

    Attributes:
        preprocess: how each source's frames are fitted, "pad" or "crop".
        videos: sources that are ordinary videos, which end in a newline under AnyRes (reference section 1).
        beyond_context: a measurement of how far the context reaches, so no length is too long.
    """

    request: Request
    media: Mapping[str, Any]
    preprocess: Mapping[str, str] = field(default_factory=dict)
    videos: frozenset[str] = frozenset()
    beyond_context: bool = False


def build_prompt(
    text: str,
    visuals: Sequence[Any],
    leaf: Leaf,
    template: PromptTemplate,
    *,
    max_frames: int,
    system: str | None = None,
) -> Prompt:
    """One user turn.

    Raises:
        ValueError: placeholders and visuals that do not match in number.
    """
    parts = [visual_part(visual, max_frames) for visual in visuals]
    if any(part.template == "none" for part in parts):
        # A raw prompt: its segments hold every word (text NIAH has no chat template, reference section 4).
        segments = [segment for part in parts for segment in part.segments]
        return _prompt([Text(template.bos), *segments], parts, leaf)
    return _prompt(_turn(template.opening(system), text, parts, template.post), parts, leaf)


def build_chat(
    messages: Sequence[Mapping[str, Any]], leaf: Leaf, template: PromptTemplate, *, max_frames: int
) -> Prompt:
    """A conversation in Hugging Face form: roles system, user, assistant; content a string or typed items.

    Raises:
        ValueError: no user turn at the end, an unknown role or content type.
    """
    system: str | None = None
    segments: list[Segment] = []
    parts: list[VisualPart] = []
    turns = list(messages)
    if turns and turns[0].get("role") == "system":
        system = _split_content(turns.pop(0)["content"])[0]
    if not turns or turns[-1].get("role") != "user":
        raise ValueError("a conversation must end with a user turn")
    before = template.opening(system)
    for number, message in enumerate(turns):
        text, visuals = _split_content(message["content"])
        role = message.get("role")
        if role == "user":
            new = [visual_part(visual, max_frames) for visual in visuals]
            parts += new
            segments += _turn(before, text, new, template.post)
        elif role == "assistant" and number > 0:
            segments.append(Text(text))
            before = template.between
        else:
            raise ValueError(f"cannot place a turn of role {role!r}; expected user and assistant turns in alternation")
    return _prompt(segments, parts, leaf)


def _split_content(content: Any) -> tuple[str, list[Any]]:
    """The text and the visuals of a message, visuals in order."""
    if isinstance(content, str):
        return content, []
    texts, visuals = [], []
    for item in content:
        kind = item.get("type")
        if kind == "text":
            texts.append(item["text"])
        elif kind in ("image", "video"):
            value = next((item[key] for key in ("url", "path", kind) if item.get(key) is not None), None)
            if isinstance(value, Mapping):
                value = value.get("url") or value.get("path") or value.get("video_path")
            visuals.append(value)
        else:
            raise ValueError(f"cannot show content of type {kind!r} to the model; expected text, image or video")
    return "\n".join(texts), visuals


def _turn(before: str, text: str, parts: Sequence[VisualPart], after: str) -> list[Segment]:
    """The segments of one user turn: visuals at their placeholders, or before the text.

    One string between two visuals is one string to the tokenizer (reference section 1), so the template's
    parts join the text beside them; in a V-NIAH prompt each stands alone (reference section 3).
    """
    pieces = _split_placeholders(text)
    if len(pieces) == 1:
        if not parts:
            return [Text(before + text + after)]
        shown: list[Segment] = []
        for number, part in enumerate(parts):
            if number:
                shown.append(Text(" "))
            shown += part.segments
        if parts[-1].is_visual_prompt:
            return [Text(before), *shown, Text(question_text(text)), Text(after)]
        return [Text(before), *shown, Text("\n" + text + after)]
    if len(pieces) - 1 != len(parts):
        raise ValueError(
            f"the prompt has {len(pieces) - 1} placeholders ({PLACEHOLDER}) and {len(parts)} visuals; "
            "give one visual for each placeholder, or no placeholder at all"
        )
    pieces[0], pieces[-1] = before + pieces[0], pieces[-1] + after
    segments: list[Segment] = [Text(pieces[0])]
    for part, piece in zip(parts, pieces[1:], strict=True):
        segments += [*part.segments, Text(piece)]
    return segments


def _split_placeholders(text: str) -> list[str]:
    for other in _PLACEHOLDERS[1:]:
        text = text.replace(other, PLACEHOLDER)
    return text.split(PLACEHOLDER)


def _prompt(segments: Sequence[Segment], parts: Sequence[VisualPart], leaf: Leaf) -> Prompt:
    media: dict[str, Any] = {}
    preprocess: dict[str, str] = {}
    for part in parts:
        media.update(part.media)
        preprocess.update(part.preprocess)
    kept = tuple(segment for segment in segments if not (isinstance(segment, Text) and not segment.text))
    return Prompt(
        request=Request(kept, leaf),
        media=media,
        preprocess=preprocess,
        videos=frozenset(source for part in parts if part.is_video for source in part.media),
        beyond_context=any(part.is_visual_prompt for part in parts),
    )
