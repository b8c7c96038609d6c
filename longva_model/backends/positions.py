"""Position schemes: which absolute positions a rendered prompt's tokens have, where not the model's own.

A scheme is a function of a prompt's layout alone:

    scheme(prompt: PositionedPrompt) -> whole numbers of shape (axes, T + 1)

The last column is the token behind the prompt, where an answer begins; behind that, every axis runs on by 1, or by the
function's attribute ``step`` where it has one. Positions alone are changed: which frequencies of RoPE an axis turns
stays as the model's config has it.

Shapes: T tokens of a prompt, A axes of positions, U units, t visual tokens of a unit.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vniah.notices import did_you_mean
from vniah.runs.measure import code_of

_Ints = NDArray[np.int64]
# Times are binary fractions: 3 frames at 0.1 s are 0.30000000000000004 s.
_SPARE = 1e-6
VIDEOROPE_SPACING = 2


@dataclass(frozen=True, slots=True)
class PositionedUnit:
    """Visual tokens that stand next to each other and show the same frames.

    Attributes:
        start, stop: their place in the prompt.
        clip: which clip or image they show, counted over the prompt.
        frames: the numbers of that clip's frames in the unit, the last one repeated where the processor repeats it;
            none for a vector that the model itself puts among visual tokens.
        seconds: when each of the frames is shown, in the time of the video it was taken from; none for an image.
        grid: (t, h, w) tokens of the unit, merged ones, row by row; t is 1. None where the processor tells no grid.
        offset: which of the grid's tokens is the first one here: in some families text stands between an image's rows.
    """

    start: int
    stop: int
    clip: int
    frames: tuple[int, ...]
    seconds: tuple[float, ...]
    grid: tuple[int, int, int] | None
    offset: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class PositionedPrompt:
    """What a scheme is told.

    Attributes:
        ids_T: token ids, int64; placeholders at visual tokens.
        visual_T: where visual tokens stand, bool.
        units: the visual units in the order of the prompt.
        own_AT: the model's own positions, int64 of (A, T + 1), the last column behind the prompt. (Arrays are
            read-only; take a copy.)
        tokens_per_second: of the model's config; None where it has none.
        spatial_merge: patches along each side of a visual token; 1 where the config has none.
    """

    ids_T: _Ints
    visual_T: NDArray[np.bool_]
    units: tuple[PositionedUnit, ...]
    own_AT: _Ints
    tokens_per_second: float | None = None
    spatial_merge: int = 1

    def __post_init__(self) -> None:
        for array in (self.ids_T, self.visual_T, self.own_AT):
            array.flags.writeable = False

    def __len__(self) -> int:
        return len(self.ids_T)

    @property
    def axes(self) -> int:
        """Axes of positions that the model's decoder takes: 1, or 3 (time, height, width)."""
        return len(self.own_AT)


SchemeFunction = Callable[[PositionedPrompt], Any]


@dataclass(frozen=True, slots=True, eq=False)
class Scheme:
    """A position scheme that was chosen.

    Attributes:
        name: as it was asked for.
        function: computes it.
        fingerprint: of the function's code and of the file it stands in; of a built-in one's file.
        built_in: whether it stands here. One of those does not look at the text behind a visual, which runs on, so it
            is asked once for all questions about a clip; a user's function is asked about each prompt as a whole.
        step: from one token to the next behind the prompt.
    """

    name: str
    function: SchemeFunction
    fingerprint: str
    built_in: bool
    step: int = 1

    def positions(self, prompt: PositionedPrompt) -> _Ints:
        """(A, T + 1), int64.

        Raises:
            ValueError: the function fails, or gives what the model's decoder does not take.
        """
        try:
            found: Any = self.function(prompt)
            if hasattr(found, "detach"):
                found = found.detach().cpu()
            array = np.asarray(found)
        except Exception as error:  # of a function of the user's: anything
            if isinstance(error, ValueError) and self.built_in:
                raise
            told = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise ValueError(f"positions={self.name} failed on a prompt of {len(prompt)} tokens: {told}") from error
        self._check(array, prompt)
        # A copy: the function may give the model's own, or keep what it gave.
        return np.array(array, np.int64, order="C")

    def _check(self, array: NDArray[Any], prompt: PositionedPrompt) -> None:
        wanted = f"whole numbers from 0 on, an array of shape (axes, T + 1) = ({prompt.axes}, {len(prompt) + 1})"
        problem = ""
        if array.dtype.kind not in "iuf":
            problem = f"gave {array.dtype} values"
        elif array.shape != (prompt.axes, len(prompt) + 1):
            problem = f"gave an array of shape {array.shape}"
            if array.ndim == 2 and array.shape[1] == len(prompt) + 1:
                problem = f"gave {len(array)} axes, and this model's decoder takes {prompt.axes}"
        elif array.dtype.kind == "f":
            strange = ~np.isfinite(array) | (array != np.floor(array))
            problem = f"gave {array.dtype} values"
            if strange.any():
                axis, token = np.argwhere(strange)[0].tolist()
                problem += f", such as {array[axis, token]} at token {token}"
        elif array.size and array.min() < 0:
            axis, token = np.unravel_index(int(array.argmin()), array.shape)
            problem = f"gave {array.min()} at token {token} (axis {axis})"
        elif array.size and int(array.max()) > np.iinfo(np.int32).max:
            problem = f"gave positions up to {array.max()}"
        if problem:
            raise ValueError(f"positions={self.name} {problem}; expected {wanted}")


# ---------------------------------------------------------------- built-in schemes

# From a run's units and its first free position: its positions, (A, tokens), and where the text behind it goes on.
_Lay = Callable[[Sequence[PositionedUnit], int], tuple[_Ints, int]]


def vanilla(prompt: PositionedPrompt) -> _Ints:
    """RoPE as for text (Su et al., arXiv 2104.09864): token i has position i on every axis."""
    return _running(prompt.axes, 0, len(prompt) + 1)


def time(prompt: PositionedPrompt) -> _Ints:
    """All tokens of a unit have one position, which follows its time; the same on every axis.

    A clip's first unit takes the next free position s_0. Unit u is at max(n, s_0 + floor(r (tau_u - tau_0))): tau is
    the time of its first frame in seconds, r the config's tokens_per_second (1 without one), n the next free position
    where text stands before the unit and the position of the unit before it otherwise. Text goes on at the last
    unit's + 1. What has no time (an image, a newline vector) takes the next position.

    At one unit a second and r = 1 this is "time RoPE" of VideoRoPE's code (Wei et al., arXiv 2502.05173), which counts
    units.
    """
    first: dict[int, tuple[int, float]] = {}
    rate = prompt.tokens_per_second or 1.0

    def lay(run: Sequence[PositionedUnit], start: int) -> tuple[_Ints, int]:
        at, found, before = start - 1, [], None
        for unit in run:
            same = before is not None and unit.frames == before.frames
            if not same and unit.seconds:
                base, zero = first.setdefault(unit.clip, (at + 1, unit.seconds[0]))
                passed = int(np.floor(rate * (unit.seconds[0] - zero) + _SPARE))
                at = max(start if before is None else at, base + passed)
            elif not same:
                at += 1
            found.append(np.full(unit.stop - unit.start, at, np.int64))
            before = unit
        return _on_every_axis(np.concatenate(found), prompt.axes), at + 1

    return _laid_out(prompt, lay)


def tad(prompt: PositionedPrompt) -> _Ints:
    """Temporal-Aware Dual RoPE (TC-LLaVA: Gao et al., arXiv 2409.03206), its gamma 1: i + tau(i) on every axis.

    i is the token's index; tau is 0, 1, ... over text, one value for all tokens of a unit, 1 more than that of the
    unit before; so text runs on by 2. (Turning by i and then by tau is turning by their sum.) As VideoRoPE's code has
    it, whose published grids call it time RoPE.
    """

    def lay(run: Sequence[PositionedUnit], start: int) -> tuple[_Ints, int]:
        numbers_t = np.repeat(_numbers(run), [unit.stop - unit.start for unit in run])
        return _on_every_axis(start + numbers_t, prompt.axes), start + int(numbers_t[-1]) + 1

    return _laid_out(prompt, lay) + vanilla(prompt)


def mrope(prompt: PositionedPrompt) -> _Ints:
    """M-RoPE as Qwen2-VL defines it (Wang et al., arXiv 2409.12191): (s + t, s + h, s + w).

    s is the first free position, t counts the units of a clip that stand next to each other, h and w are a token's row
    and column. Text goes on at the greatest position on any axis + 1.

    transformers 5's Qwen2-VL lets text go on at s + max(H, W) instead: the same for clips of at most max(H, W) units.
    Qwen2.5-VL's own t is in seconds, not in units.
    """
    _need_axes(prompt, "mrope")

    def lay(run: Sequence[PositionedUnit], start: int) -> tuple[_Ints, int]:
        found_3t = start + np.concatenate(
            [_cells(unit, "mrope") + _along_time(int(number)) for unit, number in zip(run, _numbers(run), strict=True)],
            axis=1,
        )
        return found_3t, int(found_3t.max()) + 1

    return _laid_out(prompt, lay)


def videorope(prompt: PositionedPrompt) -> _Ints:
    """VideoRoPE's layout (Wei et al., arXiv 2502.05173), diagonal and widely spaced in time; delta is 2.

    (s + delta t, s + delta t + h - floor((H - 1) / 2), s + delta t + w - floor((W - 1) / 2)), with s, t, h and w as in
    ``mrope`` and H x W the tokens of a unit. Text goes on at the greatest position of the time axis + 1. As in its
    code; its paper centres by H / 2 and W / 2. Where a wide frame stands so early that a position falls below 0, all
    are moved up by as much, which RoPE does not see.

    VideoRoPE also gives time the lowest frequencies. That is no matter of positions and is not done here: a checkpoint
    that was trained with it needs a decoder that does it.
    """
    _need_axes(prompt, "videorope")

    def lay(run: Sequence[PositionedUnit], start: int) -> tuple[_Ints, int]:
        parts = []
        for unit, number in zip(run, _numbers(run), strict=True):
            _, height, width = unit.grid or (1, 1, 1)
            middle_3 = np.array([0, (height - 1) // 2, (width - 1) // 2], np.int64)[:, None]
            parts.append(_cells(unit, "videorope") - middle_3 + VIDEOROPE_SPACING * int(number))
        found_3t = start + np.concatenate(parts, axis=1)
        return found_3t, int(found_3t[0].max()) + 1

    found_3T = _laid_out(prompt, lay)
    return found_3T - min(0, int(found_3T.min()))


BUILT_IN: dict[str, SchemeFunction] = {
    "vanilla": vanilla,
    "time": time,
    "tad": tad,
    "mrope": mrope,
    "videorope": videorope,
}


def _laid_out(prompt: PositionedPrompt, lay: _Lay) -> _Ints:
    """Text runs on; what a run of neighbouring units takes is told by ``lay``."""
    parts: list[_Ints] = []
    at = free = 0
    for run in _runs(prompt.units):
        text = run[0].start - at
        parts.append(_running(prompt.axes, free, text))
        visual_At, behind = lay(run, free + text)
        parts.append(visual_At)
        at, free = run[-1].stop, behind
    parts.append(_running(prompt.axes, free, len(prompt) + 1 - at))
    return np.concatenate(parts, axis=1)


def _runs(units: Sequence[PositionedUnit]) -> Iterator[list[PositionedUnit]]:
    """Units of one clip with nothing between them."""
    run: list[PositionedUnit] = []
    for unit in units:
        if run and (unit.start != run[-1].stop or unit.clip != run[-1].clip):
            yield run
            run = []
        run.append(unit)
    if run:
        yield run


def _numbers(run: Sequence[PositionedUnit]) -> _Ints:
    """Which unit each is, where the parts of one count once, (U,)."""
    new_U = [before.frames != unit.frames for before, unit in itertools.pairwise(run)]
    return np.cumsum([False, *new_U]).astype(np.int64)


def _cells(unit: PositionedUnit, name: str) -> _Ints:
    """(0, row, column) of a unit's tokens, (3, t)."""
    count = unit.stop - unit.start
    if unit.grid is None or unit.offset + count > int(np.prod(unit.grid)):
        raise ValueError(
            f"positions={name} needs the rows and columns of visual tokens, which the processor does not tell of the "
            f"{count} tokens from {unit.start} on; choose vanilla, time or tad"
        )
    index_t = np.arange(unit.offset, unit.offset + count)
    return np.stack([np.zeros_like(index_t), *np.divmod(index_t, unit.grid[2])])


def _along_time(number: int) -> _Ints:
    return np.array([number, 0, 0], np.int64)[:, None]


def _running(axes: int, start: int, count: int) -> _Ints:
    return _on_every_axis(np.arange(start, start + count, dtype=np.int64), axes)


def _on_every_axis(positions_T: _Ints, axes: int) -> _Ints:
    return np.repeat(positions_T[None], axes, axis=0)


def _need_axes(prompt: PositionedPrompt, name: str) -> None:
    if prompt.axes != 3:
        raise ValueError(
            f"positions={name} has 3 axes (time, height, width), and this model's decoder takes {prompt.axes}; choose "
            "vanilla, time or tad, or a model with M-RoPE"
        )


# ---------------------------------------------------------------- by name


def load_scheme(asked: str) -> Scheme | None:
    """The scheme of that name: "model" (None: the model's own), a built-in one, or ``module:function``.

    A module is imported as Python finds it (an installed one, or one on PYTHONPATH), which runs its code.

    Raises:
        ValueError: there is none; names it.
    """
    if asked == "model":
        return None
    if asked in BUILT_IN:
        step = 2 if asked == "tad" else 1
        return Scheme(asked, BUILT_IN[asked], _fingerprint(BUILT_IN[asked]), built_in=True, step=step)
    module, colon, name = asked.partition(":")
    if not colon or not module or not name:
        hint = did_you_mean(asked, ("model", *BUILT_IN))
        raise ValueError(
            f"positions={asked!r}: no scheme of that name{hint}; expected model, {', '.join(BUILT_IN)}, or "
            "module:function"
        )
    try:
        found = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # of a module of the user's: anything
        told = " ".join(str(error).split())[:300]
        raise ValueError(
            f"positions={asked!r}: {module} cannot be imported ({type(error).__name__}: {told}); install it or put its "
            "folder on PYTHONPATH"
        ) from error
    if not callable(found):
        problem = "has none of that name" if found is None else f"has a {type(found).__name__} of that name"
        raise ValueError(f"positions={asked!r}: {module} {problem}; expected a function of a PositionedPrompt")
    step = getattr(found, "step", 1)
    if not isinstance(step, int) or step < 1:
        raise ValueError(f"positions={asked!r}: its step is {step!r}; expected a whole number, 1 at least")
    return Scheme(asked, found, f"{_fingerprint(found)} {step}", built_in=False, step=step)


def _fingerprint(function: SchemeFunction) -> str:
    """Of a function's own code and bindings and of the whole file it stands in, whose helpers it may call."""
    parts = [code_of(function)]
    module = inspect.getmodule(function) or inspect.getmodule(type(function))
    source = getattr(module, "__file__", None)
    if source and Path(source).is_file():
        parts.append(hashlib.sha256(Path(source).read_bytes()).hexdigest())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
