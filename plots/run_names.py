"""Names for runs that stand beside each other: two of one model are told apart by what differs between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from vniah.plots.compare import frames_of
from vniah.plots.run_notes import measured_on
from vniah.runs.results import Run
from vniah.runs.run_reader import model_args


def distinct_names(groups: Sequence[Sequence[Run]], *, by_frames: bool = True) -> list[list[Run]]:
    """Groups of runs (one a RUN argument) with a name of their own each, told apart by what differs between them.

    That is the frames that the model was given, the haystack, the needles, a model argument, the task, the settings of
    the grid or ``--limit``: the first that tells all of a name apart, else as many as it takes. Where nothing of that
    differs, the date; and a number at the last.
    """
    if by_frames:
        twice = _repeated(groups)
        groups = [
            [
                replace(run, name=f"{run.name}@{frames}") if run.name in twice and (frames := frames_of(run)) else run
                for run in group
            ]
            for group in groups
        ]
    named = [list(group) for group in groups]
    for tell in (_telling, _dates, _numbers):
        for name in _repeated(named):
            places = [at for at, group in enumerate(named) if any(run.name == name for run in group)]
            tails = tell([[run for run in named[at] if run.name == name] for at in places], places)
            for at, tail in zip(places, tails, strict=True):
                named[at] = [replace(run, name=f"{name}{tail}") if run.name == name else run for run in named[at]]
    return named


def _dates(groups: Sequence[Sequence[Run]], _: Sequence[int]) -> list[str]:
    dates = [str(group[0].settings.get("timing", {}).get("date", "")) for group in groups]
    return [f", of {date}" if date else "" for date in dates] if len(set(dates)) > 1 else [""] * len(groups)


def _numbers(_: Sequence[Sequence[Run]], places: Sequence[int]) -> list[str]:
    return [f" ({place + 1})" for place in places]


def _repeated(groups: Sequence[Sequence[Run]]) -> list[str]:
    """The names that several groups have."""
    names = [name for group in groups for name in dict.fromkeys(run.name for run in group)]
    return [name for name in dict.fromkeys(names) if names.count(name) > 1]


def _telling(groups: Sequence[Sequence[Run]], _: Sequence[int] = ()) -> list[str]:
    """For groups of one name, what to put behind it: ", haystack synthetic:0" and ", haystack synthetic:3"."""
    columns = [column for column in _traits(groups) if len(set(column)) > 1]
    if len(groups) < 2 or not columns:
        return [""] * len(groups)
    chosen = next((column for column in columns if len(set(column)) == len(groups)), columns[0])
    tails = [""] * len(groups)
    for value in dict.fromkeys(chosen):
        places = [at for at, one in enumerate(chosen) if one == value]
        further = _telling([groups[at] for at in places])
        for at, tail in zip(places, further, strict=True):
            tails[at] = (f", {value}" if value else "") + tail
    return tails


def _traits(groups: Sequence[Sequence[Run]]) -> Iterator[list[str]]:
    """One trait after the other, as each group has it; the most telling first. The date tells nothing but the run."""
    firsts = [next((run for run in group if run.placed), group[0]) for group in groups]
    measured = [measured_on(run) for run in firsts]
    for what in ("haystack", "needles"):
        known = [one.get(what) for one in measured]
        yield [f"{what} {one.name}" if one else "" for one in known]
        yield [f"{what} {one.proven}" if one else "" for one in known]
    arguments = [model_args(run) for run in firsts]
    # What was written where tells nothing of what was measured, unless it is the model.
    paths = {key for one in arguments for key, value in one.items() if "/" in value or key == "journal"}
    for key in dict.fromkeys(key for one in arguments for key in one if key == "pretrained" or key not in paths):
        yield [f"{key}={one[key]}" if key in one else f"no {key}" for one in arguments]
    yield ["task " + "+".join(dict.fromkeys(run.task for run in group)) for group in groups]
    for what in dict.fromkeys(what for one in measured for what in one):
        yield [f"{what} {one[what].name}" if what in one else "" for one in measured]
    limits = [run.settings.get("model", {}).get("limit") for run in firsts]
    yield [f"--limit {limit:g}" if isinstance(limit, (int, float)) and limit > 0 else "" for limit in limits]
