"""From a request to atoms by a model's own chat template and processor.

One column (clips of one shape, one conversation) is rendered once; its cells are the same tokens with other units in
their places. Columns that differ in the text behind the last visual alone share all that stands before it.

Shapes: A atoms, U units, f frames that are merged into one unit, F frames of a clip, P axes of positions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from longva_model.backends.columns import ClipShape, Column, Content, FramesOf, ImageShape, cut_short
from longva_model.backends.columns import Turn as RenderedTurn
from longva_model.backends.rendering import Renderer
from longva_model.backends.unit_cutting import Fitted
from longva_model.engine.atoms import AtomTable, Lowered, Series
from longva_model.prompts.prompting import Prompt
from vniah.contract.requests import Clip, Frames, Image, Segment, Text, Turn
from vniah.contract.sources import FramesNHWC, FrameSource, HeldFrames
from vniah.notices import notice
from vniah.visual.compose import letterbox

_HEADS = 64
# What a column's settings tell of it alone; the others hold for all.
_OF_A_COLUMN = ("fitted", "frames_a_unit", "tokens_a_unit", "frames_shrunk")
_STILLS = 64


class UnitSeries:
    """Units of ``merged`` neighbouring frames of a source, from one of its first ``merged`` frames on."""

    def __init__(self, source: FrameSource, merged: int, first: int) -> None:
        self.source, self.merged, self.first = source, merged, first
        self.size, self.approximate = source.size, source.approximate
        self.fingerprint = source.fingerprint if merged == 1 else f"{source.fingerprint}/{merged}+{first}"

    def __len__(self) -> int:
        return (len(self.source) - self.first) // self.merged

    def frames(self, start: int, stop: int) -> FramesNHWC:
        """Units ``start`` to ``stop``, uint8 of shape (N, f, H, W, 3)."""
        first, last = (self.first + index * self.merged for index in (start, stop))
        frames_NHWC = self.source.frames(first, last)
        return frames_NHWC.reshape(stop - start, self.merged, *frames_NHWC.shape[1:])

    def reader(self) -> UnitSeries | None:
        reader = self.source.reader()
        return None if reader is None else UnitSeries(reader, self.merged, self.first)


class OneUnit:
    """A unit of frames that are no neighbours in one source, as (source, index) each."""

    approximate = False

    def __init__(self, frames: Sequence[tuple[FrameSource, int]]) -> None:
        self._frames = frames
        self.size = frames[0][0].size
        self.approximate = any(source.approximate for source, _ in frames)
        self.fingerprint = "unit:" + ",".join(f"{source.fingerprint}#{index}" for source, index in frames)

    def __len__(self) -> int:
        return 1

    def frames(self, start: int, stop: int) -> FramesNHWC:
        """Uint8 of shape (1, f, H, W, 3)."""
        return np.concatenate([source.frames(index, index + 1) for source, index in self._frames])[None][start:stop]

    def reader(self) -> None:
        return None


@dataclass
class Shown:
    """The frames of a clip, by where they come from; or of an image, which is one."""

    shape: ClipShape | ImageShape
    sources: list[FrameSource]
    source_F: NDArray[np.int64]  # which of the sources
    index_F: NDArray[np.int64]  # which of its frames

    @classmethod
    def of(cls, shape: ClipShape | ImageShape, spans: Sequence[tuple[FrameSource, int, int]]) -> Shown:
        """Frames in runs, as (source, start, stop)."""
        sources = {source.fingerprint: source for source, _, _ in spans}
        numbers = {name: number for number, name in enumerate(sources)}
        source_F = np.concatenate([np.full(stop - start, numbers[one.fingerprint]) for one, start, stop in spans])
        index_F = np.concatenate([np.arange(start, stop) for _, start, stop in spans])
        return cls(shape, list(sources.values()), source_F, index_F)

    def spans(self) -> Iterator[tuple[FrameSource, int, int]]:
        """The frames in runs, as (source, start, stop)."""
        cuts = np.flatnonzero((np.diff(self.source_F) != 0) | (np.diff(self.index_F) != 1)) + 1
        for one, at in zip(np.split(self.source_F, cuts), np.split(self.index_F, cuts), strict=True):
            yield self.sources[one[0]], int(at[0]), int(at[-1]) + 1

    def frames(self) -> FramesNHWC:
        """All of them, (F, H, W, 3)."""
        return np.concatenate([source.frames(start, stop) for source, start, stop in self.spans()])

    def at_home(self, table: AtomTable) -> Shown:
        """The same frames, each from the source that a batch takes it from."""
        if all(getattr(source, "contents", None) is None for source in self.sources):
            return self
        return Shown.of(self.shape, [home for span in self.spans() for home in table.homes(*span)])


class Stills:
    """Images that stand among frames, letterboxed to their size: the same few for hundreds of cells."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, tuple[int, int]], HeldFrames] = OrderedDict()

    def letterboxed(self, image: PILImage.Image, name: str, size: tuple[int, int]) -> HeldFrames:
        """One frame of (height, width)."""
        if (name, size) not in self._kept:
            self._kept[name, size] = HeldFrames(letterbox(image, size)[None], f"still:{name}:{size[1]}x{size[0]}")
            while len(self._kept) > _STILLS:
                self._kept.popitem(last=False)
        return self._kept[name, size]


def shown(
    segments: Sequence[Segment], media: Mapping[str, Any], stills: Stills
) -> tuple[tuple[RenderedTurn, ...], list[Shown]]:
    """What a request's messages show: texts and shapes for the renderer, and where the shapes' frames come from.

    Raises:
        ValueError: a source that the media do not hold, frames of several sizes in one clip, or text outside a turn.
    """
    turns: list[tuple[str, list[Content]]] = []
    visuals: list[Shown] = []
    clip: list[Segment] = []
    about = Clip()

    def close() -> None:
        nonlocal about
        if clip:
            visuals.append(_clip(clip, about, media, stills))
            turns[-1][1].append(visuals[-1].shape)
            clip.clear()
        about = Clip()

    for segment in segments:
        if isinstance(segment, Turn):
            close()
            turns.append((segment.role, []))
            continue
        if not turns:
            raise ValueError(f"a {type(segment).__name__} stands before the first turn of a conversation")
        if isinstance(segment, Frames) or (isinstance(segment, Image) and segment.as_frame):
            clip.append(segment)
            continue
        close()
        if isinstance(segment, Clip):
            about = segment
        elif isinstance(segment, Text):
            turns[-1][1].append(segment.text)
        elif isinstance(segment, Image):
            image = _source(segment.source, media).convert("RGB")
            still = HeldFrames(np.asarray(image)[None], f"still:{segment.source}")
            visuals.append(Shown.of(ImageShape(still.size), [(still, 0, 1)]))
            turns[-1][1].append(visuals[-1].shape)
        else:
            raise ValueError(f"{type(segment).__name__} has no place in a conversation")
    close()
    return tuple((role, tuple(contents)) for role, contents in turns), visuals


def _clip(segments: Sequence[Segment], about: Clip, media: Mapping[str, Any], stills: Stills) -> Shown:
    """Frames in a row, images among them letterboxed to the frames' size."""
    named = dict.fromkeys(part.source for part in segments if isinstance(part, (Frames, Image)))
    found = {name: _source(name, media) for name in named}
    sizes = {source.size for source in found.values() if not isinstance(source, PILImage.Image)}
    if len(sizes) > 1:
        told = ", ".join(f"{width}x{height}" for height, width in sorted(sizes))
        raise ValueError(f"the frames of a clip must be of one size, got {told}")
    first = next(iter(found.values()))
    height, width = sizes.pop() if sizes else (first.height, first.width)
    sources: dict[str, FrameSource] = {}
    for name, source in found.items():
        if isinstance(source, PILImage.Image):
            source = stills.letterboxed(source, name, (height, width))
        sources[name] = source
    spans = [(sources[part.source], *_span(part, sources[part.source])) for part in segments]  # type: ignore[union-attr]
    num_frames = sum(stop - start for _, start, stop in spans)
    shape = ClipShape(num_frames, (height, width), about.fps, about.indices, about.total)
    return Shown.of(shape, spans)


def _span(segment: Segment, source: FrameSource) -> tuple[int, int]:
    if not isinstance(segment, Frames):
        return 0, 1
    if segment.stop > len(source):
        raise ValueError(f"frames up to {segment.stop} are asked of a source that has {len(source)}")
    return segment.start, segment.stop


def _source(name: str, media: Mapping[str, Any]) -> Any:
    try:
        return media[name]
    except KeyError:
        raise ValueError(f"a segment names the source {name!r}, which the media do not hold") from None


@dataclass(frozen=True, eq=False)
class _Places:
    """Units that are made alike: of one visual, fitted alike, with as many tokens.

    Attributes:
        clip: which visual.
        series: what they have in common with others, sources left open.
        atoms_U: which atoms of the column they are.
        frames_Uf: which frames of the visual they show.
    """

    clip: int
    series: Series
    atoms_U: NDArray[np.int64]
    frames_Uf: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Head:
    """A column up to its last visual token.

    Attributes:
        atoms_A: ids, and -1 where units come.
        positions_PT: of its tokens and the one behind; None where they run on.
        reference: the turns that were rendered, and the ids behind the head there.
        runs_on: whether positions behind the head do, whatever stands there; else they are those of ``reference``.
    """

    atoms_A: NDArray[np.int64]
    places: list[_Places]
    positions_PT: NDArray[np.integer[Any]] | None
    reference: tuple[tuple[RenderedTurn, ...], NDArray[np.int64]]
    runs_on: bool


class Lowering:
    """Lowers conversations.

    Args:
        renderer: of the model's processor.
    """

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer
        self._step = 1 if renderer.scheme is None else renderer.scheme.step
        self._heads: OrderedDict[Any, _Head] = OrderedDict()
        self._stills = Stills()
        # What results say of all columns, and of each: by the frames of its clips and their sizes.
        self.shown_as: dict[str, Any] = {}
        self.columns: dict[_Label, dict[str, Any]] = {}
        self.notes: dict[str, None] = {}

    def expect(self, prompts: Iterable[Prompt]) -> None:
        """See the shapes of all prompts of a run before the first is lowered: columns are rendered and told of.

        Raises:
            ValueError: as ``lower``.
        """
        columns: dict[_Label, tuple[RenderedTurn, ...]] = {}
        for prompt in prompts:
            if any(isinstance(segment, Turn) for segment in prompt.request.segments):
                turns, _ = self.shown(prompt.request.segments, prompt.media)
                columns.setdefault(_label(turns), turns)
        shapes = [one for turns in columns.values() for one in _clips(turns)]
        if self.renderer.expect(shapes):
            self._heads.clear()
            self.columns.clear()
        for _, turns in sorted(columns.items()):
            if self.renderer.needs_frames:
                self._tell(turns, self.renderer.sketched(turns))
            else:
                self._column(turns)
        self._say_shrunk()
        self._say_repeated()

    def told(self) -> list[dict[str, Any]]:
        """What results say of the columns, those that are alike in one: their frames, how these were shown, and at
        how many tokens. Sizes of the clips are told where there are several."""
        several = len({sizes for _, sizes in self.columns}) > 1
        found: dict[str, dict[str, Any]] = {}
        for (frames, sizes), told in sorted(self.columns.items()):
            of = {"of": " + ".join(sizes)} if several else {}
            one = found.setdefault(f"{told} {of}", {"columns": [], **of, **told})
            one["columns"].append(" + ".join(map(str, frames)))
        for one in found.values():
            units = zip(one["tokens_a_unit"], one["frames_a_unit"], strict=True)
            one["tokens_a_frame"] = [round(tokens / max(frames, 1), 2) for tokens, frames in units]
            one["columns"] = ", ".join(one["columns"])
        return list(found.values())

    def _say_shrunk(self) -> None:
        """Frames of different sizes in the columns of one run are nothing that a reader of its scores would expect."""
        told = [(frames[0], told) for (frames, _), told in sorted(self.columns.items())]
        sizes = {str(one["fitted"]) for _, one in told}
        if self.renderer.frame_tokens != "auto" or len(sizes) < 2 or not any(one["frames_shrunk"] for _, one in told):
            return
        (short, first), *_, (long, last) = told
        notice(
            f"the processor shrinks frames with their number: {_sized(first)} in a clip of {short} frames, "
            f"{_sized(last)} in one of {long}. Columns differ in sharpness, a control perhaps from its cells, which "
            "have a frame more, and share nothing; frame_tokens=column shows all at the size of the longest",
            kind="shrunk frames",
        )

    def _say_repeated(self) -> None:
        """A needle that is shown twice is easier to see than one that shares its unit with a frame of the film."""
        merged = max((frames for one in self.columns.values() for frames in one["frames_a_unit"]), default=1)
        shown = {frames for counts, _ in self.columns for frames in counts}
        # A cell has a frame more than its control.
        odd = [frames for frames in shown if frames % merged and frames - 1 in shown]
        if odd:
            notice(
                f"the model merges {merged} frames into one visual unit, and its processor repeats the last frame of a "
                f"clip whose number of frames is no multiple of that (such as {min(odd)}): a needle behind the last "
                "frame (depth 100) is then alone in its unit, and one at another depth shares it with a frame of the "
                f"film. Compare depths with that in mind, or show numbers of frames that make clips of {merged}, "
                f"{2 * merged}, ... frames, the needle counted",
                kind="repeated frames",
            )

    def _tell(self, turns: tuple[RenderedTurn, ...], column: Column) -> None:
        """Keep what results say of a column, and say its notes."""
        for note in column.notes:
            notice(f"{note}; thinking=off tells the chat template otherwise, where it knows of that")
        self.notes.update(dict.fromkeys(column.notes))
        if not any(_clips(turns)):
            return
        settings = dict(column.settings)
        # What is told of prompts that depend on their frames is told before any is seen.
        self.columns.setdefault(_label(turns), {name: settings.pop(name) for name in _OF_A_COLUMN})
        self.shown_as = {name: value for name, value in settings.items() if name not in _OF_A_COLUMN}

    def lower(self, segments: Sequence[Segment], media: Mapping[str, Any], table: AtomTable) -> Lowered:
        """A request's messages as atoms.

        Raises:
            ValueError: as ``shown``, and what the renderer refuses.
        """
        turns, visuals = self.shown(segments, media)
        if self.renderer.needs_frames and visuals:
            head = self._rendered(turns, lambda clip: visuals[clip].frames())
            tail_A = head.reference[1]
        else:
            head, tail_A = self._column(turns)
        atoms_A = head.atoms_A.copy()
        taken = [visual.at_home(table) for visual in visuals]
        for places in head.places:
            atoms_A[places.atoms_U] = _codes(places, taken[places.clip], table, alone=self.renderer.needs_frames)
        return Lowered.of([atoms_A, tail_A], table, head.positions_PT, self._step)

    def shown(
        self, segments: Sequence[Segment], media: Mapping[str, Any]
    ) -> tuple[tuple[RenderedTurn, ...], list[Shown]]:
        """As ``shown``, images among frames kept."""
        return shown(segments, media, self._stills)

    def _column(self, turns: tuple[RenderedTurn, ...]) -> tuple[_Head, NDArray[np.int64]]:
        """The column's head, and the ids behind it."""
        scheme = self.renderer.scheme
        # A user's scheme may place the visuals by the text behind them, and that text anywhere.
        stem = _stem(turns) if scheme is None or scheme.built_in else turns
        head = self._heads.get(stem)
        if head is None:
            head = self._heads[stem] = self._rendered(turns)
            while len(self._heads) > _HEADS:
                self._heads.popitem(last=False)
            return head, head.reference[1]
        self._heads.move_to_end(stem)
        if turns == head.reference[0]:
            return head, head.reference[1]
        if not head.runs_on:
            head = self._rendered(turns)
            return head, head.reference[1]
        # The same visuals and another end: a text of few tokens tells the end.
        (before_A, tail_A), (theirs_A, their_tail_A) = (self._ends(one) for one in (turns, head.reference[0]))
        if np.array_equal(before_A, theirs_A) and np.array_equal(their_tail_A, head.reference[1]):
            return head, tail_A
        head = self._rendered(turns)
        return head, head.reference[1]

    def _ends(self, turns: tuple[RenderedTurn, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids up to the last visual token and behind it, of the same turns with clips cut short."""
        column = self.renderer.column(cut_short(turns))
        end = column.units[-1].stop if column.units else 0
        return column.ids_T[:end], column.ids_T[end:]

    def _rendered(self, turns: tuple[RenderedTurn, ...], frames_of: FramesOf | None = None) -> _Head:
        column = self.renderer.column(turns, frames_of)
        end = column.units[-1].stop if column.units else 0
        atoms_A, places = _skeleton(column, end)
        positions_PT: NDArray[np.integer[Any]] | None = column.positions_AT
        runs_on = True
        if positions_PT is not None:
            # Behind the last visual token stands text, whose positions run on.
            steps_T = self._step * np.arange(positions_PT.shape[1] - end)
            running_T = positions_PT[:, end:] - positions_PT[:, end : end + 1] == steps_T
            runs_on = bool(running_T.all())
            # Half the memory, for hundreds of thousands of tokens a column.
            positions_PT = positions_PT[:, : end + 1 if runs_on else None].astype(np.int32)
        self._tell(turns, column)
        return _Head(atoms_A, places, positions_PT, (turns, column.ids_T[end:]), runs_on)


def _clips(turns: tuple[RenderedTurn, ...]) -> list[ClipShape]:
    return [content for _, contents in turns for content in contents if isinstance(content, ClipShape)]


# A column: frames of its clips, and their sizes, width first: ((200,), ("640x360",)).
_Label = tuple[tuple[int, ...], tuple[str, ...]]


def _label(turns: tuple[RenderedTurn, ...]) -> _Label:
    clips = _clips(turns)
    sizes = dict.fromkeys(f"{clip.size[1]}x{clip.size[0]}" for clip in clips)
    return tuple(clip.num_frames for clip in clips), tuple(sizes)


def _sized(told: Mapping[str, Any]) -> str:
    """ "640x352 (220 tokens a pair)", of the first clip, width first."""
    fitted, frames = Fitted.read(told["fitted"][0]), told["frames_a_unit"][0]
    unit = {1: "frame", 2: "pair"}.get(frames, f"unit of {frames} frames")
    return f"{fitted.width}x{fitted.height} ({told['tokens_a_unit'][0]} tokens a {unit})"


def _stem(turns: tuple[RenderedTurn, ...]) -> Any:
    """A conversation without the texts behind its last visual."""
    flat = [(number, role, content) for number, (role, contents) in enumerate(turns) for content in contents]
    last = max((place for place, (_, _, content) in enumerate(flat) if not isinstance(content, str)), default=-1)
    return tuple(flat[: last + 1]), tuple(role for role, _ in turns)


def _skeleton(column: Column, end: int) -> tuple[NDArray[np.int64], list[_Places]]:
    """The atoms of a column's first ``end`` tokens, units left open, and the units that belong there."""
    starts_U, stops_U = (np.array([getattr(one, name) for one in column.units], np.int64) for name in ("start", "stop"))
    change_T = np.zeros(end + 1, np.int64)
    np.add.at(change_T, starts_U, 1)
    np.add.at(change_T, stops_U, -1)
    begins_T = np.cumsum(change_T)[:end] == 0
    begins_T[starts_U] = True
    atom_T = np.cumsum(begins_T) - 1
    atoms_A = column.ids_T[:end][begins_T].copy()
    atoms_A[atom_T[starts_U]] = -1
    whole: dict[tuple[int, tuple[int, ...]], int] = {}
    for unit in column.units:
        key = (unit.clip, unit.frames)
        whole[key] = max(whole.get(key, 0), unit.offset + unit.stop - unit.start)
    groups: dict[tuple[int, Series, int], tuple[list[int], list[tuple[int, ...]]]] = {}
    for unit in column.units:
        series = Series(
            name="",
            fitted=unit.fitted,
            tokens=unit.stop - unit.start,
            placeholder=int(column.ids_T[unit.start]),
            offset=unit.offset,
            whole=whole[unit.clip, unit.frames] if unit.frames else 0,
        )
        atoms, frames = groups.setdefault((unit.clip, series, len(unit.frames)), ([], []))
        atoms.append(int(atom_T[unit.start]))
        frames.append(unit.frames)
    return atoms_A, [
        _Places(clip, series, np.array(atoms, np.int64), np.array(frames, np.int64).reshape(len(atoms), merged))
        for (clip, series, merged), (atoms, frames) in groups.items()
    ]


def _codes(places: _Places, visual: Shown, table: AtomTable, *, alone: bool) -> NDArray[np.int64]:
    """The codes of units, by the content of their frames.

    Args:
        alone: which of its tokens stay is each unit's own, and a series, which is encoded in blocks, would waste most.
    """
    merged = places.frames_Uf.shape[1]
    if merged == 0:
        # What a model itself puts among visual tokens.
        return np.repeat(table.codes(places.series, 0, 1), len(places.atoms_U))
    source_Uf, index_Uf = visual.source_F[places.frames_Uf], visual.index_F[places.frames_Uf]
    neighbours_U = (source_Uf == source_Uf[:, :1]).all(1) & (np.diff(index_Uf, axis=1) == 1).all(1)
    if alone:
        neighbours_U[:] = False
    codes_U = np.zeros(len(places.atoms_U), np.int64)
    groups_U = source_Uf[:, 0] * merged + index_Uf[:, 0] % merged
    for group in np.unique(groups_U[neighbours_U]).tolist():
        number, first = divmod(group, merged)
        source = UnitSeries(visual.sources[number], merged, first)
        rows_U = neighbours_U & (groups_U == group)
        series = replace(places.series, name=source.fingerprint, source=source)
        codes_U[rows_U] = table.codes_at(series, (index_Uf[rows_U, 0] - first) // merged)
    for row in np.flatnonzero(~neighbours_U).tolist():
        one = OneUnit(
            [(visual.sources[n], int(i)) for n, i in zip(source_Uf[row].tolist(), index_Uf[row].tolist(), strict=True)]
        )
        codes_U[row] = table.codes(replace(places.series, name=one.fingerprint, source=one), 0, 1)[0]
    return codes_U
