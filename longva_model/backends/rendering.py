"""A prompt as a model's own chat template and processor write it, without touching a pixel.

One rendering serves all cells of a column: token ids and positions follow from how many frames there are and of which
size, and a visual unit is told by the frames in it.

Shapes: T tokens of a prompt, F frames of a clip, N units, P placeholders, H and W a frame's height and width.
"""

from __future__ import annotations

import inspect
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from longva_model.backends.columns import (
    ClipShape,
    Column,
    FramesOf,
    ImageShape,
    Rendered,
    Turn,
    UnitPlace,
    Visual,
    cut_short,
)
from longva_model.backends.placing import Placing
from longva_model.backends.positions import PositionedPrompt, PositionedUnit, Scheme
from longva_model.backends.processor_calls import ProcessorCalls, Thinness
from longva_model.backends.unit_cutting import Fitted, Kind, UnitCutter
from longva_model.backends.unit_pixels import UnitPixels

Presentation = Literal["video", "images", "auto"]
_COLUMNS = 16
_PLACEHOLDER_NAMES = ("image_token_id", "video_token_id", "image_token_index", "video_token_index")
# How families write the begin and the end of a thought.
_THOUGHTS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel>thought", "<channel|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)


class Renderer:
    """Prompts and pixels by a model's own processor.

    Args:
        processor: of ``AutoProcessor``.
        config: the model's, which names the placeholders.
        positions: ``get_rope_index`` of the model (which may live on the meta device); None where a model's positions
            are running.
        presentation: whether a clip is shown as one video or each frame as an image; "auto" is a video where the
            processor and its template know videos.
        frame_tokens: "auto" leaves a frame's size to the processor; a number is the most tokens that a unit (a frame,
            or the frames that are merged into one) may have, at one size for clips of any length; "column" is, for
            clips of any length, the size that the processor chooses for the longest that is expected.
        template_kwargs: passed on to ``apply_chat_template``.
        scheme: gives positions instead.

    Raises:
        ValueError: the processor shows no such thing as is asked for.
    """

    def __init__(
        self,
        processor: Any,
        config: Any,
        positions: Callable[..., Any] | None = None,
        presentation: Presentation = "auto",
        frame_tokens: int | Literal["auto", "column"] = "auto",
        template_kwargs: Mapping[str, Any] | None = None,
        scheme: Scheme | None = None,
    ) -> None:
        self.processor = processor
        self.scheme = scheme
        self.template_kwargs = dict(template_kwargs or {})
        if frame_tokens not in ("auto", "column") and (not isinstance(frame_tokens, int) or frame_tokens < 1):
            raise ValueError(f'frame_tokens={frame_tokens!r}: give "auto", "column", or a number of tokens, 1 at least')
        self.frame_tokens = frame_tokens
        self._positions = positions
        self._vision_config = getattr(config, "vision_config", None)
        named = {getattr(config, name, None) for name in _PLACEHOLDER_NAMES}
        self.placeholders: tuple[int, ...] = tuple(sorted(one for one in named if isinstance(one, int)))
        if not self.placeholders:
            raise ValueError(f"{type(config).__name__} names no token that stands for an image or a frame")
        self._calls = ProcessorCalls(processor, self.placeholders)
        self._cutter = UnitCutter(self._calls)
        self._trouble = ""
        self.presentation = self._presented(presentation)
        self._columns: OrderedDict[tuple[Turn, ...], Column] = OrderedDict()
        self._thin: dict[tuple[Turn, ...], Thinness] = {}
        self._placing = Placing(self._calls, self._cutter, self.placeholders, self._written)
        # Of "column": frames of the longest clip that is expected, and what frames of each size are held at.
        self._longest = 0
        self._held: dict[tuple[int, int], tuple[int, int]] = {}

    def expect(self, shapes: Sequence[ClipShape]) -> bool:
        """Settle at which size frames are held where ``frame_tokens`` is "column".

        Args:
            shapes: all the clips of a run.

        Returns:
            Whether that is another size than before, so that what was rendered is of no use any more.
        """
        if self.frame_tokens != "column" or self.presentation != "video" or not shapes:
            return False
        longest = max(shape.num_frames for shape in shapes)
        found = {size: self._cutter.natural("video", size, longest) for size in sorted({one.size for one in shapes})}
        held = {size: (one.height, one.width) for size, one in found.items()}
        if not any(self._cutter.shrunk(one, size) for size, one in found.items()):
            # No clip is long enough for its frames to be shrunk: the processor treats all alike.
            longest, held = 0, {}
        changed = held != self._held
        self._longest, self._held = longest, held
        if changed:
            self._columns.clear()
            self._thin.clear()
            self._placing.forget()
        return changed

    @property
    def size_rule(self) -> Any:
        """What decides a frame's size besides the processor's files and the clip: part of every result's key."""
        if self.frame_tokens != "column":
            return self.frame_tokens
        return {f"{w}x{h}": f"{to_w}x{to_h}" for (h, w), (to_h, to_w) in self._held.items()} or "auto"

    @property
    def _sizes_given(self) -> bool:
        """Whether frames are resized here, and not by the processor."""
        return isinstance(self.frame_tokens, int) or bool(self._longest)

    @property
    def needs_frames(self) -> bool:
        """Whether a prompt depends on what its frames show, so that ``column`` must be given them."""
        return self.presentation == "video" and bool(
            getattr(self.processor.video_processor, "use_token_compression", None)
        )

    def column(self, turns: Sequence[Turn], frames_of: FramesOf | None = None) -> Column:
        """The prompt of ``turns`` with the answer still to come.

        Args:
            frames_of: the clips' frames, which are looked at only where ``needs_frames``.

        Raises:
            ValueError: the processor or the template does not take it, its placeholders do not come out even, or its
                frames are needed.
        """
        key = tuple((role, tuple(contents)) for role, contents in turns)
        if self.needs_frames and any(isinstance(one, ClipShape) for _, contents in key for one in contents):
            if frames_of is None:
                raise ValueError(
                    f"{self._calls.name} leaves out tokens of frames that resemble the frame before: a prompt is "
                    "rendered with its frames only"
                )
            return self._column(key, frames_of)
        if key not in self._columns:
            self._columns[key] = self._column(key, None)
            while len(self._columns) > _COLUMNS:
                self._columns.popitem(last=False)
        self._columns.move_to_end(key)
        return self._columns[key]

    def sketched(self, turns: Sequence[Turn]) -> Column:
        """As ``column``, without a look at frames: where ``needs_frames``, as if no token were left out.

        Raises:
            ValueError: as ``column``.
        """
        key = tuple((role, tuple(contents)) for role, contents in turns)
        return self._column(key, None) if self.needs_frames else self.column(key)

    def inputs(self, turns: Sequence[Turn], frames_of: FramesOf) -> dict[str, Any]:
        """What the processor makes of the whole prompt with all its frames, as the model's own forward is given it.

        Raises:
            ValueError: as ``column``.
        """
        key = tuple((role, tuple(contents)) for role, contents in turns)
        self._check(key)
        rendered = self._render(key, "whole", frames_of)
        return {**rendered.data, "input_ids": torch.from_numpy(rendered.ids_T)[None]}

    def unit_pixels(self, frames_NfHWC: NDArray[np.uint8], fitted: str) -> UnitPixels:
        """What the tower is given of N units of f frames each, by the processor's names for its tensors.

        Equal to the bit to what the processor cuts out of the whole clip.

        Args:
            frames_NfHWC: uint8 RGB; the frames of a ``UnitPlace``.
            fitted: as that tells it.

        Raises:
            ValueError: the processor fits these frames to no such size.
        """
        return self._cutter.pixels(frames_NfHWC, fitted)

    def _presented(self, asked: Presentation) -> Literal["video", "images"]:
        if asked not in ("video", "images", "auto"):
            raise ValueError(f'presentation={asked!r}: choose "video", "images" or "auto"')
        if asked != "images" and self._shows("video"):
            return "video"
        if asked != "video" and self._shows("image"):
            return "images"
        cause = f" ({self._trouble})" if self._trouble else ""
        if asked == "auto":
            raise ValueError(f"{self._calls.name} and its chat template show neither videos nor images{cause}")
        raise ValueError(
            f'{self._calls.name} or its chat template shows no {asked.rstrip("s")}s{cause}; try presentation="auto"'
        )

    def _shows(self, kind: Kind) -> bool:
        token = getattr(self.processor, f"{kind}_token", None)
        if token is None or self._cutter.part(kind) is None:
            return False
        try:
            return str(token) in self._text([("user", [{"type": kind}, {"type": "text", "text": "?"}])])
        except Exception as error:  # a template of the checkpoint's own: anything
            self._trouble = f"the template fails: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            return False

    def _text(self, messages: Sequence[tuple[str, list[dict[str, str]]]], answer: bool = True) -> str:
        given = [{"role": role, "content": parts} for role, parts in messages]
        options = {"add_generation_prompt": answer, "tokenize": False, **self.template_kwargs}
        return str(self.processor.apply_chat_template(given, **options))

    def _column(self, turns: tuple[Turn, ...], frames_of: FramesOf | None) -> Column:
        self._check(turns)
        rendered = self._render(turns, self._thinness(turns), frames_of)
        units = self._placing.units(rendered)
        types_T = _types(rendered)
        positions_AT = None if self._positions is None else self._position_ids(rendered, types_T)
        if self.scheme is not None:
            positions_AT = self._by_scheme(self.scheme, turns, rendered, units, positions_AT)
        settings = self._settings(rendered, units)
        return Column(rendered.ids_T, positions_AT, types_T, units, settings, self._notes(turns, rendered.text))

    def _check(self, turns: tuple[Turn, ...]) -> None:
        tokens = [getattr(self.processor, f"{kind}_token", None) for kind in ("image", "video")]
        # What the processor writes in a visual's place may be another token than the template does.
        tokens += self.processor.tokenizer.convert_ids_to_tokens(list(self.placeholders))
        for content in (content for _, contents in turns for content in contents):
            if isinstance(content, str):
                for token in tokens:
                    if token and token in content:
                        raise ValueError(
                            f"a text holds {token!r}, which {self._calls.name} takes for a visual; leave it out"
                        )
            elif not isinstance(content, (ClipShape, ImageShape)):
                raise TypeError(f"a message shows strings, ClipShape and ImageShape, not {type(content).__name__}")

    def _thinness(self, turns: tuple[Turn, ...]) -> Thinness:
        """How little of a prompt has to be written out: told by the same turns with clips cut short."""
        cut = cut_short(turns)
        if cut == turns:
            return "whole"
        if cut not in self._thin:
            whole = self._render(cut, "whole")
            ways: tuple[Thinness, ...] = ("grids", "runs") if all(whole.grids) else ("runs",)
            self._thin[cut] = next((way for way in ways if self._gives(cut, way, whole)), "whole")
        return self._thin[cut]

    def _gives(self, turns: tuple[Turn, ...], thin: Thinness, whole: Rendered) -> bool:
        try:
            found = self._render(turns, thin)
        except ValueError:
            return False
        pairs = ((found.ids_T, whole.ids_T), (_types(found), _types(whole)))
        return all(a is b or (a is not None and b is not None and np.array_equal(a, b)) for a, b in pairs)

    def _render(self, turns: tuple[Turn, ...], thin: Thinness, frames_of: FramesOf | None = None) -> Rendered:
        messages, images, videos = self._shown(turns)
        text = self._text(messages)
        _check_texts(turns, text)
        given: dict[str, Any] = {}
        if images:
            given["images"] = [[self._frames(one, frames_of)[0] for one in images]]
        if videos:
            given["videos"] = [self._frames(one, frames_of) for one in videos]
            given["video_metadata"] = [_metadata(one.shape) for one in videos if one.shape]
            given["do_sample_frames"] = False
        if self._sizes_given:
            given["do_resize"] = False
        begin = getattr(self.processor.tokenizer, "bos_token", None)
        if begin and text.startswith(begin):
            given["add_special_tokens"] = False
        call = self._calls.shapes if frames_of is None else self._calls.made
        data = call(text, given, thin)
        ids_T = np.asarray(data.pop("input_ids"))[0].astype(np.int64)
        visuals = self._in_order(text, images, videos)
        taken = {kind: iter(data.get(f"{kind}_grid_thw", ())) for kind in ("image", "video")}
        grids: list[tuple[int, int, int] | None] = []
        for one in visuals:
            grid = next(taken[one.kind], None)
            grids.append(None if grid is None else (int(grid[0]), int(grid[1]), int(grid[2])))
        rendered = Rendered(text, ids_T, data, visuals, grids)
        if thin == "grids":
            self._write_out(rendered)
        return rendered

    def _written(self, turns: tuple[Turn, ...]) -> int:
        """How many placeholders the processor writes for a prompt."""
        return int(np.isin(self._render(turns, "whole").ids_T, self.placeholders).sum())

    def _write_out(self, rendered: Rendered) -> None:
        """Repeat the one placeholder that stands for each unit."""
        times: list[int] = []
        for visual, grid in zip(rendered.visuals, rendered.grids, strict=True):
            if grid is not None:
                times += [grid[1] * grid[2] // self._cutter.merged_patches(visual.kind)] * grid[0]
        where_P = np.flatnonzero(np.isin(rendered.ids_T, self.placeholders))
        if len(where_P) != len(times):
            raise ValueError(
                f"{self._calls.name} wrote {len(where_P)} placeholders for {len(times)} units of one token"
            )
        times_T = np.ones(len(rendered.ids_T), dtype=np.int64)
        times_T[where_P] = times
        for name in ("mm_token_type_ids", "token_type_ids"):
            if name in rendered.data:
                rendered.data[name] = np.repeat(np.asarray(rendered.data[name])[0], times_T)[None]
        rendered.ids_T = np.repeat(rendered.ids_T, times_T)

    def _shown(
        self, turns: tuple[Turn, ...]
    ) -> tuple[list[tuple[str, list[dict[str, str]]]], list[Visual], list[Visual]]:
        """Messages for the template, and the images and videos in them."""
        messages: list[tuple[str, list[dict[str, str]]]] = []
        images: list[Visual] = []
        videos: list[Visual] = []
        clip = 0
        for role, contents in turns:
            parts: list[dict[str, str]] = []
            for content in contents:
                if isinstance(content, str):
                    parts.append({"type": "text", "text": content})
                    continue
                if isinstance(content, ClipShape) and self.presentation == "video":
                    parts.append({"type": "video"})
                    videos.append(Visual("video", clip, tuple(range(content.num_frames)), content.size, content))
                else:
                    count = content.num_frames if isinstance(content, ClipShape) else 1
                    parts += [{"type": "image"} for _ in range(count)]
                    images += [Visual("image", clip, (index,), content.size) for index in range(count)]
                clip += 1
            messages.append((role, parts))
        return messages, images, videos

    def _frames(self, visual: Visual, frames_of: FramesOf | None) -> torch.Tensor:
        """(F, 3, H, W), at the size that is asked for where one is."""
        wanted = self._wanted(visual) if self._sizes_given else visual.size
        if frames_of is None:
            frame = torch.empty((1, 3, *wanted), dtype=torch.uint8, device="meta")
            return frame.expand(len(visual.frames), 3, *wanted)
        frames_FHWC = frames_of(visual.clip)
        expected = (len(visual.frames), *visual.size, 3)
        if visual.kind == "video" and frames_FHWC.shape != expected:
            raise ValueError(
                f"clip {visual.clip} has frames of shape {frames_FHWC.shape}, not {expected} as it was told"
            )
        frames = torch.from_numpy(np.ascontiguousarray(frames_FHWC[list(visual.frames)])).permute(0, 3, 1, 2)
        return frames.contiguous() if wanted == visual.size else self._cutter.resized(frames, visual.kind, wanted)

    def _wanted(self, visual: Visual) -> tuple[int, int]:
        """The size at which a visual's frames are handed to the processor."""
        if isinstance(self.frame_tokens, int):
            return self._cutter.size_of(visual.size, visual.kind, self.frame_tokens)
        if visual.kind == "video" and visual.size in self._held:
            return self._held[visual.size]
        # An image's size depends on no number of frames, and the processor is told once for all that it resizes none.
        fitted = self._cutter.natural(visual.kind, visual.size, self._longest)
        if fitted.tiles > 1:
            raise ValueError(
                f'frame_tokens="column": {self._calls.name} cuts an image beside the clip into tiles; '
                'give frame_tokens="auto"'
            )
        return fitted.height, fitted.width

    def _in_order(self, text: str, images: list[Visual], videos: list[Visual]) -> list[Visual]:
        """The visuals as the template's text shows them: some templates put all images before all videos."""
        waiting = {"image": list(images), "video": list(videos)}
        tokens = {kind: getattr(self.processor, f"{kind}_token", None) for kind in waiting}
        pattern = "|".join(f"(?P<{kind}>{re.escape(token)})" for kind, token in tokens.items() if token)
        found = []
        for match in re.finditer(pattern, text):
            if left := waiting[str(match.lastgroup)]:
                found.append(left.pop(0))
        for kind, left in waiting.items():
            if left:
                total = len(images if kind == "image" else videos)
                raise ValueError(
                    f"the chat template shows {total - len(left)} of the prompt's {total} {kind}s; "
                    'try another presentation ("video" or "images")'
                )
        return found

    def _position_ids(self, rendered: Rendered, types_T: NDArray[np.uint8] | None) -> NDArray[np.int64]:
        assert self._positions is not None
        taken = inspect.signature(self._positions).parameters
        # One more token of text: where an answer begins.
        ids_1T = torch.from_numpy(np.append(rendered.ids_T, rendered.ids_T[-1]))[None]
        given = {
            name: torch.as_tensor(value)
            for name, value in rendered.data.items()
            if name in taken and name != "attention_mask"
        }
        given["input_ids"] = ids_1T
        if "mm_token_type_ids" in taken:
            if types_T is None:
                raise ValueError(f"{self._calls.name} tells no token types, which the model's positions need")
            given["mm_token_type_ids"] = torch.from_numpy(np.append(types_T, 0).astype(np.int32))[None]
        found = self._positions(**given)
        positions = found[0] if isinstance(found, tuple) else found
        positions_AT = positions.reshape(-1, ids_1T.shape[1]).cpu().numpy().astype(np.int64)
        return np.ascontiguousarray(positions_AT)

    def _notes(self, turns: tuple[Turn, ...], text: str) -> list[str]:
        """What the template writes behind the last message may open a thought, in which the answer then stands."""
        behind = text.removeprefix(self._text(self._shown(turns)[0], answer=False))
        if any(behind.rfind(begin) > behind.rfind(end) for begin, end in _THOUGHTS):
            return ["the rendered prompt ends in an opened thought, so an answer stands inside it"]
        return []

    def _by_scheme(
        self,
        scheme: Scheme,
        turns: tuple[Turn, ...],
        rendered: Rendered,
        units: list[UnitPlace],
        own_AT: NDArray[np.int64] | None,
    ) -> NDArray[np.int64] | None:
        """Positions by a scheme that is not the model's; None where they turn out to be 0, 1, 2 and so on."""
        visual_T = np.zeros(len(rendered.ids_T), dtype=np.bool_)
        for unit in units:
            visual_T[unit.start : unit.stop] = True
        running_AT = np.arange(len(visual_T) + 1, dtype=np.int64)[None]
        prompt = PositionedPrompt(
            ids_T=rendered.ids_T.copy(),
            visual_T=visual_T,
            units=tuple(self._positioned(turns, rendered, units)),
            own_AT=running_AT.copy() if own_AT is None else own_AT.copy(),
            tokens_per_second=getattr(self._vision_config, "tokens_per_second", None),
            spatial_merge=int(getattr(self._vision_config, "spatial_merge_size", None) or 1),
        )
        found_AT = scheme.positions(prompt)
        return None if scheme.step == 1 and np.array_equal(found_AT, running_AT) else found_AT

    def _positioned(
        self, turns: tuple[Turn, ...], rendered: Rendered, units: list[UnitPlace]
    ) -> Iterator[PositionedUnit]:
        shown = [content for _, contents in turns for content in contents if not isinstance(content, str)]
        grids: dict[tuple[int, int], tuple[int, int, int]] = {}
        for visual, patches in zip(rendered.visuals, rendered.grids, strict=True):
            if patches is not None:
                side = math.isqrt(self._cutter.merged_patches(visual.kind))
                grids |= {(visual.clip, frame): (1, patches[1] // side, patches[2] // side) for frame in visual.frames}
        for unit in units:
            clip = shown[unit.clip]
            times: tuple[float, ...] = ()
            if isinstance(clip, ClipShape):
                times = tuple((clip.indices[one] if clip.indices else one) / clip.fps for one in unit.frames)
            grid = grids.get((unit.clip, unit.frames[0])) if unit.frames else None
            yield PositionedUnit(unit.start, unit.stop, unit.clip, unit.frames, times, grid, unit.offset)

    def _settings(self, rendered: Rendered, units: list[UnitPlace]) -> dict[str, Any]:
        first: dict[int, UnitPlace] = {}
        tokens: dict[int, int] = {}
        for unit in units:
            if unit.frames and unit.frames == first.setdefault(unit.clip, unit).frames:
                tokens[unit.clip] = tokens.get(unit.clip, 0) + unit.stop - unit.start
        sizes = {visual.clip: visual.size for visual in rendered.visuals}
        fitted = {clip: Fitted.read(unit.fitted) for clip, unit in first.items()}
        shrinks = self.frame_tokens == "auto"
        return {
            "processor": self._calls.name,
            "presentation": self.presentation,
            "fitted": [str(replace(fitted[clip], mask="")) for clip in first],
            "frames_a_unit": [len(unit.frames) for unit in first.values()],
            "tokens_a_unit": [tokens[clip] for clip in first],
            "frames_shrunk": shrinks and any(self._cutter.shrunk(fitted[clip], sizes[clip]) for clip in first),
            "frame_tokens": self.frame_tokens,
            "template_kwargs": self.template_kwargs,
            **self._cutter.settings(),
        }


def _check_texts(turns: tuple[Turn, ...], text: str) -> None:
    """Refuse a template that leaves out what a user or the system says. (Of an assistant, many leave thoughts out.)"""
    shown = " ".join(text.split())
    for role, content in ((role, content) for role, contents in turns for content in contents):
        if role != "assistant" and isinstance(content, str) and (said := " ".join(content.split())) not in shown:
            raise ValueError(
                f"the chat template does not show what the {role} says ({said[:60]!r}) as it stands; "
                + ("give no system prompt" if role == "system" else "take its maker's own chat_template.jinja")
            )


def _types(rendered: Rendered) -> NDArray[np.uint8] | None:
    types = rendered.data.get("mm_token_type_ids", rendered.data.get("token_type_ids"))
    return None if types is None else np.asarray(types)[0].astype(np.uint8)


def _metadata(shape: ClipShape) -> Any:
    from transformers.video_utils import VideoMetadata

    total = shape.total or shape.num_frames
    return VideoMetadata(
        total_num_frames=total,
        fps=shape.fps,
        duration=total / shape.fps,
        width=shape.size[1],
        height=shape.size[0],
        frames_indices=list(shape.indices or range(shape.num_frames)),
    )
