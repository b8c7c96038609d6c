"""A prompt and its visuals as a ``Request``: where placeholders stand, which template is around them.

Follows the reference (section 1): "<image>" in the text marks a visual; without any, the visuals come
first, joined by a space, and the text starts on a new line. Each text piece is tokenised alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from longva_model.prompts.visuals import VisualPart, visual_part
from vniah.contract.requests import Leaf, Request, Segment, Text
from vniah.prompts import PromptTemplate, question_text

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
    messages: Sequence[Mapping[str, Any]],
    leaf: Leaf,
    template: PromptTemplate,
    *,
    max_frames: int,
    system: str | None = None,
) -> Prompt:
    """A conversation in Hugging Face form: roles system, user, assistant; content a string or typed items.

    A system message comes before ``system``, which comes before the template's own.

    The string between two visuals is tokenised as one, turns and all, as the processor does with what its chat
    template makes of the same messages.

    Raises:
        ValueError: no user turn at the end, an unknown role or content type, or placeholders and visuals of a
            message that do not match in number.
    """
    segments: list[Segment] = []
    parts: list[VisualPart] = []
    turns = list(messages)
    if turns and turns[0].get("role") == "system":
        system = "".join(item for item in _items(turns.pop(0)["content"]) if isinstance(item, str))
    if not turns or turns[-1].get("role") != "user":
        raise ValueError("a conversation must end with a user turn")
    before = template.opening(system)
    for number, message in enumerate(turns):
        role, items = message.get("role"), _items(message["content"])
        if role == ("assistant" if number % 2 else "user"):
            new = [visual_part(item.visual, max_frames) for item in items if isinstance(item, _Shown)]
        else:
            raise ValueError(f"cannot place a turn of role {role!r}; expected user and assistant turns in alternation")
        if role == "assistant":
            segments.append(Text(template.answer + "".join(item for item in items if isinstance(item, str))))
            before = template.between
        else:
            parts += new
            segments += _chat_turn(before, items, new, template.post)
    if not any(part.is_visual_prompt for part in parts):
        segments = _joined(segments)
    return _prompt(segments, parts, leaf)


@dataclass(frozen=True, slots=True)
class _Shown:
    """A visual among the items of a message."""

    visual: Any


def _items(content: Any) -> list[str | _Shown]:
    """The texts and visuals of a message, in order."""
    if isinstance(content, str):
        return [content]
    items: list[str | _Shown] = []
    for item in content:
        kind = item.get("type")
        if kind == "text":
            items.append(item["text"] or "")
        elif kind in ("image", "video"):
            value = next((item[key] for key in ("url", "path", kind) if item.get(key) is not None), None)
            clip = {key: item[key] for key in ("start_time", "end_time") if item.get(key) is not None}
            items.append(_Shown({"url": value, **clip} if clip else value))
        else:
            raise ValueError(f"cannot show content of type {kind!r} to the model; expected text, image or video")
    return items


def _chat_turn(before: str, items: Sequence[str | _Shown], parts: Sequence[VisualPart], after: str) -> list[Segment]:
    """The segments of one user message: visuals where they stand among its texts.

    A text with placeholders of its own says better where they stand: lmms-eval puts every visual first in the
    messages that it makes of a task without messages. A visual is followed by a newline before text, and by a
    space before another visual (the chat template's rule).
    """
    text = "".join(item for item in items if isinstance(item, str))
    if len(_split_placeholders(text)) > 1 or any(part.is_visual_prompt for part in parts):
        return _turn(before, text, parts, after)
    segments: list[Segment] = [Text(before)]
    coming = iter(parts)
    last: str | _Shown = ""
    for item in items:
        if isinstance(last, _Shown):
            segments.append(Text(" " if isinstance(item, _Shown) else "" if item.startswith("\n") else "\n"))
        segments += [Text(item)] if isinstance(item, str) else next(coming).segments
        last = item
    return [*segments, Text(after)]


def _joined(segments: Sequence[Segment]) -> list[Segment]:
    """Neighbouring texts as one, for a tokenizer to see them whole."""
    joined: list[Segment] = []
    for segment in segments:
        if isinstance(segment, Text) and joined and isinstance(joined[-1], Text):
            joined[-1] = Text(joined[-1].text + segment.text)
        else:
            joined.append(segment)
    return joined


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
            # A space that would part it from a word has no place before a frame: "[INST]" there, "[INST] " here.
            return [Text(before.rstrip(" ")), *shown, Text(question_text(text)), Text(after)]
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
    """The prompt of these segments, empty texts left out.

    Raises:
        ValueError: nothing is left to compute on.
    """
    media: dict[str, Any] = {}
    preprocess: dict[str, str] = {}
    for part in parts:
        media.update(part.media)
        preprocess.update(part.preprocess)
    kept = tuple(segment for segment in segments if not (isinstance(segment, Text) and not segment.text))
    if not kept:
        raise ValueError("a prompt is empty: no text, no visual, and the model's template adds nothing; ask something")
    return Prompt(
        request=Request(kept, leaf),
        media=media,
        preprocess=preprocess,
        videos=frozenset(source for part in parts if part.is_video for source in part.media),
        beyond_context=any(part.is_visual_prompt for part in parts),
    )
