"""A prompt and its visuals as a ``Request``: where placeholders stand, which template is around them.

Follows the reference (section 1): "<image>" in the text marks a visual; without any, the visuals come
first, joined by a space, and the text starts on a new line. Each text piece is tokenised alone. A video is the same
to the model however it comes: a path, an array or a list of frames gives the same segments, sampled the same way.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image as PILImage

from longva_model.pictures.opening import ArrayFrames, load_image, sample_indices
from longva_model.prompts.chat_templates import PLACEHOLDER
from vniah.contract.requests import Clip, Frames, Image, Leaf, Request, Segment, Text, Turn
from vniah.contract.sources import FrameSource, Visual
from vniah.files import user_path
from vniah.haystack.opening import open_video
from vniah.haystack.pictures import IMAGE_SUFFIXES, is_picture, open_image
from vniah.prompts import PromptTemplate, question_text

VIDEO_SUFFIXES = (".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")
_PATH_KEYS = ("url", "path", "video_path", "video", "image")
_CLIP_KEYS = ("video_start", "video_end", "start_time", "end_time")


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

    A system message comes before ``system``, which comes before the template's own. The string between two visuals is
    tokenised as one, turns and all, as the processor does with what its chat template makes of the same messages.

    Raises:
        ValueError: no user turn at the end, an unknown role or content type, or placeholders and visuals of a
            message that do not match in number.
    """
    segments: list[Segment] = []
    parts: list[VisualPart] = []
    turns = list(messages)
    if turns and turns[0].get("role") == "system":
        system = _text(_items(turns.pop(0)["content"]))
    if not turns or turns[-1].get("role") != "user":
        raise ValueError("a conversation must end with a user turn")
    before = template.opening(system)
    for number, message in enumerate(turns):
        role, items = message.get("role"), _items(message["content"])
        if role != ("assistant" if number % 2 else "user"):
            raise ValueError(f"cannot place a turn of role {role!r}; expected user and assistant turns in alternation")
        if role == "assistant":
            segments.append(Text(template.answer + _text(items)))
            before = template.between
        else:
            new = [visual_part(item, max_frames) for item in items if not isinstance(item, str)]
            parts += new
            segments += _chat_turn(before, items, new, template.post)
    if not any(part.is_visual_prompt for part in parts):
        segments = _joined(segments)
    return _prompt(segments, parts, leaf)


def build_turns(
    messages: Sequence[Mapping[str, Any]], leaf: Leaf, *, max_frames: int, system: str | None = None
) -> Prompt:
    """A conversation for a model that has a chat template of its own: its messages as they are, told apart by turns.

    Args:
        messages: as ``build_chat`` takes them.
        system: where the messages have no system turn.

    Raises:
        ValueError: no user turn at the end, an unknown content type, or placeholders and visuals of a message that do
            not match in number.
    """
    if not messages or messages[-1].get("role") != "user":
        raise ValueError("a conversation must end with a user turn")
    segments: list[Segment] = []
    parts: list[VisualPart] = []
    if system is not None and messages[0].get("role") != "system":
        segments += [Turn("system"), Text(system)]
    for message in messages:
        items = _items(message["content"])
        new = [visual_part(item, max_frames) for item in items if not isinstance(item, str)]
        parts += new
        segments.append(Turn(str(message.get("role"))))
        text = _text(items)
        if PLACEHOLDER.search(text):
            pieces = _around_placeholders(text, len(new))
            shown: list[Any] = [pieces[0]]
            for part, piece in zip(new, pieces[1:], strict=True):
                shown += [part, piece]
        else:
            coming = iter(new)
            shown = [item if isinstance(item, str) else next(coming) for item in items]
        for item in shown:
            if isinstance(item, str):
                segments.append(Text(item))
            else:
                segments += [item.clip, *item.segments] if item.clip else item.segments
    return _prompt(segments, parts, leaf)


def build_question(
    text: str, visuals: Sequence[Any], leaf: Leaf, *, max_frames: int, system: str | None = None
) -> Prompt:
    """One user turn for a model that has a chat template of its own: visuals, then the text.

    Raises:
        ValueError: placeholders and visuals that do not match in number.
    """
    parts = [visual_part(visual, max_frames) for visual in visuals]
    if any(part.template == "none" for part in parts):
        # A raw prompt: its segments hold every word (text NIAH has no chat template, reference section 4).
        return _prompt([segment for part in parts for segment in part.segments], parts, leaf)
    content = [*({"type": "video", "url": visual} for visual in visuals), {"type": "text", "text": text}]
    return build_turns([{"role": "user", "content": content}], leaf, max_frames=max_frames, system=system)


def _around_placeholders(text: str, visuals: int) -> list[str]:
    pieces = PLACEHOLDER.split(text)
    if len(pieces) - 1 != visuals:
        raise ValueError(
            f"the prompt has {len(pieces) - 1} placeholders (<image>) and {visuals} visuals; "
            "give one visual for each placeholder, or no placeholder at all"
        )
    return pieces


def _items(content: Any) -> list[str | Mapping[str, Any]]:
    """The texts of a message, and its visuals as they are described, in order."""
    if isinstance(content, str):
        return [content]
    for item in content:
        if item.get("type") not in ("text", "image", "video"):
            kind = item.get("type")
            raise ValueError(f"cannot show content of type {kind!r} to the model; expected text, image or video")
    return [(item["text"] or "") if item["type"] == "text" else item for item in content]


def _text(items: Sequence[Any]) -> str:
    return "".join(item for item in items if isinstance(item, str))


def _chat_turn(before: str, items: Sequence[Any], parts: Sequence[VisualPart], after: str) -> list[Segment]:
    """The segments of one user message: visuals where they stand among its texts.

    A text with placeholders of its own says better where they stand: lmms-eval puts every visual first in the
    messages that it makes of a task without messages. A visual is followed by a newline before text, and by a
    space before another visual (the chat template's rule).
    """
    text = _text(items)
    if PLACEHOLDER.search(text) or any(part.is_visual_prompt for part in parts):
        return _turn(before, text, parts, after)
    segments: list[Segment] = [Text(before)]
    coming = iter(parts)
    last: Any = ""
    for item in items:
        is_text = isinstance(item, str)
        if not isinstance(last, str):
            segments.append(Text(" " if not is_text else "" if item.startswith("\n") else "\n"))
        segments += [Text(item)] if is_text else next(coming).segments
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
    pieces = PLACEHOLDER.split(text)
    if len(pieces) == 1 and parts:
        if parts[-1].is_visual_prompt:
            shown = [segment for part in parts for segment in (Text(" "), *part.segments)][1:]
            # A space that would part it from a word has no place before a frame: "[INST]" there, "[INST] " here.
            return [Text(before.rstrip(" ")), *shown, Text(question_text(text)), Text(after)]
        text = "".join(["<image>", *[" <image>"] * (len(parts) - 1), "\n" + text])
    pieces = _around_placeholders(text, len(parts))
    pieces[0] = before + pieces[0]
    pieces[-1] += after
    segments: list[Segment] = [Text(pieces[0])]
    for part, piece in zip(parts, pieces[1:], strict=True):
        segments += [*part.segments, Text(piece)]
    return segments


def _prompt(segments: Sequence[Segment], parts: Sequence[VisualPart], leaf: Leaf) -> Prompt:
    """The prompt of these segments, empty texts left out."""
    kept = tuple(segment for segment in segments if not (isinstance(segment, Text) and not segment.text))
    if not kept:
        raise ValueError("a prompt is empty: no text, no visual, and the model's template adds nothing; ask something")
    return Prompt(
        request=Request(kept, leaf),
        media={source: item for part in parts for source, item in part.media.items()},
        preprocess={source: mode for part in parts for source, mode in part.preprocess.items()},
        videos=frozenset(source for part in parts if part.is_video for source in part.media),
        beyond_context=any(part.is_visual_prompt for part in parts),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class VisualPart:
    """One visual of a prompt: its segments, the media they name, and how its frames are fitted.

    ``clip`` begins a video, which tells it from one before, and says when its frames are, where that is known.
    """

    segments: tuple[Segment, ...]
    media: Mapping[str, Any]
    preprocess: Mapping[str, str] = field(default_factory=dict)
    template: str | None = None
    is_visual_prompt: bool = False
    is_video: bool = False
    clip: Clip | None = None


def visual_part(visual: Any, max_frames: int) -> VisualPart:
    """Describe one visual as segments.

    Args:
        visual: a ``Visual`` of the contract, a path of a video or image, a PIL image, an array of frames or of one
            image, a list of PIL frames (a video), or a dict that holds one of these under "url" or "path".
        max_frames: sample at most so many frames of a video.

    Raises:
        ValueError: something else, an empty video, a corrupt image, or a file that is neither a video nor an image.
        FileNotFoundError: no such file.
    """
    if isinstance(visual, Visual):
        media = dict(visual.media())
        return VisualPart(
            segments=visual.segments(),
            media=media,
            preprocess=dict.fromkeys(media, visual.preprocess),
            template=getattr(visual, "template", None),
            is_visual_prompt=True,
        )
    if isinstance(visual, Mapping):
        return visual_part(_unwrapped(visual), max_frames)
    if isinstance(visual, (str, os.PathLike)):
        path = os.fspath(visual)
        is_image = _is_image_file(path)
        return _image_part(open_image(user_path(path))) if is_image else _video_part(open_video(path, max_frames))
    if isinstance(visual, (list, tuple)) and visual and all(isinstance(item, PILImage.Image) for item in visual):
        frames = [load_image(item) for item in visual]
        if len(sizes := {frame.size for frame in frames}) > 1:
            raise ValueError(f"the frames of a video must be of one size, got {sorted(sizes)}")
        visual = np.stack([np.asarray(frame) for frame in frames])
    if isinstance(visual, np.ndarray) and visual.ndim not in (2, 3):
        return _video_part(ArrayFrames(visual[sample_indices(len(visual), max_frames)] if visual.ndim == 4 else visual))
    if isinstance(visual, (PILImage.Image, np.ndarray)):
        return _image_part(load_image(visual))
    raise ValueError(
        f"cannot show a {type(visual).__name__} to the model; expected a path, a PIL image, frames as a uint8 "
        "array (N, H, W, 3), or a list of PIL frames"
    )


def _unwrapped(described: Mapping[str, Any]) -> Any:
    """What a dict such as ``{"type": "video", "url": path}`` holds."""
    clip = {key: described[key] for key in _CLIP_KEYS if described.get(key) is not None}
    if clip:
        asked = ", ".join(f"{key}={value}" for key, value in clip.items())
        raise ValueError(f"a part of a video is asked for ({asked}); a video is shown whole, so cut it to a file")
    given = [described[key] for key in _PATH_KEYS if key in described]
    if not given:
        keys = ", ".join(map(str, described))
        raise ValueError(f'a visual with the keys {keys} names no file; expected "url" or "path"')
    return next((value for value in given if value is not None), None)


def _is_image_file(path: str) -> bool:
    """By its name, else by its content: a picture under an unusual name is no video of one frame."""
    lower = path.lower()
    if lower.endswith(IMAGE_SUFFIXES):
        return True
    return not lower.endswith(VIDEO_SUFFIXES) and is_picture(user_path(path), still=True)


def _image_part(image: PILImage.Image) -> VisualPart:
    """An RGB image as the model sees an image: cut into tiles, not as a frame."""
    key = hashlib.sha256(repr(image.size).encode())
    key.update(image.tobytes())
    source = "image:" + key.hexdigest()[:32]
    return VisualPart(segments=(Image(source, as_frame=False),), media={source: image})


def _video_part(source: FrameSource) -> VisualPart:
    return VisualPart(
        segments=(Frames(source.fingerprint, 0, len(source)),),
        media={source.fingerprint: source},
        preprocess={source.fingerprint: "crop"},
        is_video=True,
        clip=Clip(*getattr(source, "origin", ())),
    )
