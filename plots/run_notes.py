"""What a reader of runs must know beside their figures: what each was measured on, where runs differ in that, and
what tells two runs of one model apart.

A figure of a model says something only beside what it was measured on, so every drawing, table and page of runs
takes its words from here. What a run does not say (an old one, a journal) is called unknown and never assumed.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vniah.notices import shortened
from vniah.runs.run import Run

# Without these nobody can say what was measured.
_NEEDED = {"frames": ("haystack", "needles"), "tokens": ("haystack",)}
_PAPERS = {
    "frames": "published grids have films of their own, and the paper's needles are those of lmms-lab/v_niah_needles",
    "tokens": "the paper's text is Paul Graham's essays",
}
_PAPERS_TEXT = "baber/paul_graham_essays"
_DIGEST = re.compile(r"[0-9a-f]{16,}")
# How a run's own warning begins that says of its frames what the small print would.
_SHRINKS = "the processor shrinks frames"
# Characters of what a file says that are shown: a figure has no room for more, and anyone may have written it.
_LONGEST_NAME, _LONGEST_WARNING = 200, 2000


@dataclass(frozen=True, slots=True)
class Input:
    """One thing that a run was measured on: what to call it, and the fingerprint that proves it, if there is one."""

    name: str
    fingerprint: str = ""

    def same(self, other: Input) -> bool:
        """By fingerprint where both have one, else by name."""
        if self.fingerprint and other.fingerprint:
            return self.fingerprint == other.fingerprint
        return self.name == other.name

    @property
    def proven(self) -> str:
        """The name with a short fingerprint behind it."""
        proof = short(self.fingerprint)
        return self.name if proof in ("", self.name) else f"{self.name} ({proof})"


# What ``positions`` says of a model that was measured as it is.
_OWN_POSITIONS = Input("model")
# What is said of keys and values that are kept as they are, on the device or in the host's memory.
_NOT_ROUNDED = Input("not rounded")


def short(fingerprint: str) -> str:
    """A fingerprint as long as a reader needs: the first eight digits of a hash, anything else whole."""
    digest = _DIGEST.search(fingerprint)
    return digest[0][:8] if digest else fingerprint


def is_published(run: Run) -> bool:
    """Whether it is the paper's."""
    return "published" in run.settings


def measured_on(run: Run) -> dict[str, Input]:
    """What a needle grid was measured on, by what it is: haystack, needles, grid, scoring, ...; what is known of it."""
    task = _told(run)
    found: dict[str, Input | None] = {"haystack": _named(task, "haystack")}
    if run.unit == "frames":
        found["needles"] = _named(task, "needles")
    if run.is_grid:
        lengths, depths = run.axes
        found["grid"] = Input(f"{spans(lengths)} {run.unit} x {spans(depths)} %")
    found["scoring"] = _value(_scoring(run))
    found["positions"] = _positions(run)
    found["kv"] = _kept(run)
    if run.unit == "frames":
        # Two decoders that give one fingerprint give the same pictures, and a drawn film has none.
        haystack = found["haystack"]
        drawn = haystack is not None and haystack.fingerprint.startswith(("synthetic", "images"))
        found["decoder"] = None if drawn else _value(task.get("decoder"))
        found["presentation"] = _value(task.get("presentation") or _model(run).get("presentation"))
        found["frame_tokens"] = _frame_tokens(run)
    else:
        found |= {key: _value(task.get(key)) for key in ("samples", "seed", "shared_distractors", "tokenizer")}
    return {what: one for what, one in found.items() if one is not None}


def _told(run: Run) -> Mapping[str, Any]:
    task = run.settings.get("task")
    return task if isinstance(task, Mapping) else {}


def _positions(run: Run) -> Input | None:
    """The scheme of positions, "model" where it is the model's own."""
    return _named(_model(run), "positions")


def _kept(run: Run) -> Input | None:
    """How keys and values were kept, where that decides results; an older run of ours has them as they are."""
    told = _model(run)
    if "fingerprint" not in told:
        return None
    return Input("fp8") if told.get("kv") == "fp8" else _NOT_ROUNDED


def _model(run: Run) -> Mapping[str, Any]:
    model = run.settings.get("model")
    return model if isinstance(model, Mapping) else {}


def _frame_tokens(run: Run) -> Input | None:
    """How a model's processor chose the size of frames; one that is held at what the processor chooses itself is
    its own choice."""
    told = _model(run)
    if told.get("frame_tokens") == "column" and told.get("frames_held_at") == "auto":
        return Input("auto")
    if told.get("frame_tokens") == "column":
        return Input("column", shortened(told.get("frames_held_at"), _LONGEST_NAME))
    return _value(told.get("frame_tokens"))


def shown_line(run: Run) -> str:
    """For the small print, where it is not what a reader expects: frames that were shrunk differently in columns, or
    held at one size, and a clip shown as images. Nothing where the run's own warning says so."""
    told, parts = _model(run), []
    if told.get("presentation") == "images":
        parts.append("frames shown as images, not as a video")
    listed = told.get("frames_shown")
    shown = [one for one in (listed if isinstance(listed, list) else []) if isinstance(one, Mapping)]
    rule, sizes = told.get("frame_tokens"), {str(one.get("fitted")) for one in shown}
    if rule not in (None, "auto") and told.get("frames_held_at") != "auto" and shown:
        parts.append(f"frames held at {_unit(shown[0])}, frame_tokens={shortened(rule, _LONGEST_NAME)}")
    elif len(sizes) > 1 and not any(one.startswith(_SHRINKS) for one in warnings_of(run)):
        first, last = (str(shown[at].get("columns")).rpartition(", ")[2] for at in (0, -1))
        parts.append(
            f"frames shrink with their number: {_unit(shown[0])} to {first} frames, ... {_unit(shown[-1])} at {last}"
        )
    return capitalised(shortened("; ".join(parts), _LONGEST_WARNING))


def _unit(shown: Mapping[str, Any]) -> str:
    """ "299 tokens a pair", of a column's first clip."""
    told = [shown.get(name) for name in ("tokens_a_unit", "frames_a_unit")]
    tokens, frames = (str(one[0]) if isinstance(one, list) and one else "?" for one in told)
    return f"{tokens} tokens a {({'1': 'frame', '2': 'pair'}).get(frames, f'unit of {frames} frames')}"


def _named(task: Mapping[str, Any], what: str) -> Input | None:
    name = shortened(task.get(f"{what}_name") or task.get(what) or "", _LONGEST_NAME)
    proof = shortened(task.get(f"{what}_fingerprint") or task.get(f"{what}_sha256") or "", _LONGEST_NAME)
    return Input(name or short(proof), proof) if name or proof else None


def _value(value: Any) -> Input | None:
    return None if value in (None, "") else Input(shortened(value, _LONGEST_NAME))


def _scoring(run: Run) -> Any:
    """As the run says; an older one by its task's name or the ids that only teacher forcing has."""
    if told := _told(run).get("scoring"):
        return told
    if "_generate" in run.task:
        return "generated"
    return "teacher-forced" if any(run.cells["answer_ids"]) else None


def spans(values: Sequence[int]) -> str:
    """Rising whole numbers as people write them: "200-3000:200", or "16,32"."""
    steps = {b - a for a, b in itertools.pairwise(values)}
    if len(values) > 2 and len(steps) == 1:
        return f"{values[0]}-{values[-1]}:{steps.pop()}"
    return ",".join(map(str, values))


def measured_line(run: Run) -> str:
    """For the small print: "Haystack synthetic:0, needles icons:0:3 (83d55fa8), teacher-forced"; the source of a
    published grid; nothing where the run says nothing."""
    if is_published(run):
        return f"Published: {run.settings['published']['source']}"
    known = measured_on(run)
    parts = [f"{what} {known[what].proven}" for what in ("haystack", "needles") if what in known]
    if not parts:
        return ""
    parts += [known["scoring"].name] if "scoring" in known else []
    positions = known.get("positions", _OWN_POSITIONS)
    parts += [] if positions == _OWN_POSITIONS else [f"positions: {positions.proven}"]
    kept = known.get("kv", _NOT_ROUNDED)
    parts += [] if kept == _NOT_ROUNDED else [f"keys and values in 8 bits (kv={kept.name})"]
    return capitalised(", ".join(parts))


def capitalised(line: str) -> str:
    """With a capital as a sentence has; a setting stays as it is written (``kv=fp8``, ``frame_tokens``)."""
    first = line.partition(" ")[0]
    return line if "=" in first or "_" in first else line[:1].upper() + line[1:]


def measured_lines(runs: Sequence[Run]) -> list[str]:
    """What each needle grid of ours was measured on, those that share it on one line."""
    ours = [run for run in runs if run.is_grid and not is_published(run)]
    told = [(run.name, line) for of in (measured_line, shown_line) for run in ours if (line := of(run))]
    return [f"{names}: {line[:1].lower()}{line[1:]}." for names, line in _by_names(told)]


def unfinished(runs: Sequence[Run]) -> list[str]:
    """Which needle grids are not whole: "out: 35 of 840 cells"."""
    lacking = [(run, len(run.placed), sum(run.missing().values())) for run in runs if run.is_grid]
    return [
        f"{run.name}: partial, {scored:,} of {scored + missing:,} cells." for run, scored, missing in lacking if missing
    ]


def warnings_of(run: Run) -> tuple[str, ...]:
    """What the run itself warned of: needles that stood in for the paper's, and the like."""
    told = _told(run).get("warnings") or []
    lines = (shortened(one, _LONGEST_WARNING) for one in (told if isinstance(told, list) else [told]))
    return tuple(dict.fromkeys(lines))


def warned(runs: Sequence[Run]) -> list[str]:
    """The runs' own warnings, each with who gave it."""
    told = ((run.name, one) for run in runs for one in warnings_of(run))
    return [f"{names}: warning: {text}" for names, text in _by_names(told)]


def differences(runs: Sequence[Run]) -> list[str]:
    """Whether needle grids beside each other were measured on the same: a line where they were not, a line where
    nobody knows; nothing where they were. Published grids are compared with ours, and not among themselves."""
    lines = []
    for unit in dict.fromkeys(run.unit for run in runs if run.is_grid):
        these = [run for run in runs if run.is_grid and run.unit == unit]
        ours = [(run.name, measured_on(run)) for run in these if not is_published(run)]
        lines += _differing(ours)
        if len(ours) > 1:
            lines += _unknown(ours, unit)
        if len(ours) < len(these):
            lines += _beside_the_papers(ours, unit)
    return lines


# Runs by name, each with what it was measured on.
_Known = Sequence[tuple[str, Mapping[str, Input]]]


def _differing(runs: _Known) -> list[str]:
    parts = []
    for what in dict.fromkeys(what for _, known in runs for what in known):
        having = [(name, known[what]) for name, known in runs if what in known]
        if all(one.same(having[0][1]) for _, one in having):
            continue
        # Two films of one name are told apart by their fingerprints.
        names_say = len({one.name for _, one in having}) > 1
        texts = [(name, one.name if names_say else one.proven) for name, one in having]
        if all(name.endswith(f"{what} {text}") for name, text in texts):
            parts.append(f"{what} ({', '.join(dict.fromkeys(text for _, text in texts))})")
            continue
        told = _by_names(texts)
        apart = "; " if any("," in names for names, _ in told) else ", "
        parts.append(f"{what} ({apart.join(f'{names}: {text}' for names, text in told)})")
    return [f"The runs differ in {_listed(parts)}: differences are not of the model alone."] if parts else []


def _unknown(runs: _Known, unit: str) -> list[str]:
    """Runs that stand beside others and do not say what they were measured on."""
    silent: dict[tuple[str, ...], list[str]] = {}
    for name, known in runs:
        if lacking := tuple(what for what in _NEEDED[unit] if what not in known):
            silent.setdefault(lacking, []).append(name)
    return [
        f"Unknown: the {_listed(lacking)} of {_listed(dict.fromkeys(names))}; whether the runs were measured on the "
        "same is not known."
        for lacking, names in silent.items()
    ]


def _beside_the_papers(runs: _Known, unit: str) -> list[str]:
    """On what ours was measured, where it stands beside the paper's."""
    told = []
    for name, known in runs:
        if unit == "tokens" and "haystack" in known and known["haystack"].name == _PAPERS_TEXT:
            continue
        parts = [f"{what} {known[what].name}" for what in _NEEDED[unit] if what in known]
        lacking = [what for what in _NEEDED[unit] if what not in known]
        told.append((name, ", ".join(parts + ([f"{_listed(lacking)} unknown"] if lacking else []))))
    if not told:
        return []
    lines = "; ".join(f"{names}: {text}" for names, text in _by_names(told))
    return [
        f"Not measured on what the paper's were ({lines}; {_PAPERS[unit]}): differences are not of the model alone."
    ]


def _by_names(told: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """(name, text) pairs with the names of equal texts put together."""
    found: dict[str, dict[str, None]] = {}
    for name, text in told:
        found.setdefault(text, {})[f'"{name}"' if "," in name else name] = None
    return [(_listed(names), text) for text, names in found.items()]


def _listed(parts: Iterable[str]) -> str:
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last


def is_absent(run: Run) -> bool:
    """Whether the right answer without the needle is that it is not there: then saying so is no guess."""
    return "absent" in run.task or _told(run).get("variant") == "absent"


def control_name(run: Run) -> str:
    """What the score without a needle is: a guess, or abstention, where higher is better."""
    return "abstained" if is_absent(run) else "no-needle control"


def control_note(run: Run) -> str:
    """The same with what it counts."""
    return "abstained (right to say 'not there')" if is_absent(run) else "no-needle control"


def _limit(run: Run) -> float | None:
    """How many documents it took at most, or what share of them below 1 (lmms-eval's ``--limit``)."""
    limit = run.settings.get("model", {}).get("limit")
    return limit if isinstance(limit, (int, float)) and limit > 0 else None


def left_out(runs: Sequence[Run]) -> list[str]:
    """Which runs could not ask every question, for want of the video, and which took but the first documents."""
    notes = []
    for run in runs:
        count = sum(value for key, value in run.metrics.items() if key.endswith("_missing_questions"))
        if count:
            notes.append(f"{run.name}: {count:g} questions of {run.task} left out, their videos missing or broken.")
    for run in runs:
        if (limit := _limit(run)) is not None:
            part = f"the first {limit:g}" if limit >= 1 else f"{limit:.0%} of the"
            notes.append(f"{run.name}: --limit, {part} documents of each task.")
    return list(dict.fromkeys(notes))


def frames_of(run: Run) -> int | None:
    """How many frames the model was given (``max_frames_num`` or a built-in model's name for it), if known."""
    told = (run.model_args.get(key, "") for key in ("max_frames_num", "max_num_frames", "nframes", "num_frames"))
    return next((int(one) for one in told if one.isdigit()), None)


def distinct_grids(runs: Sequence[Run]) -> list[Run]:
    """The runs, grids of one name told apart by their tasks: one run of text NIAH has three."""
    names = Counter(run.name for run in runs if run.is_grid)
    return [
        replace(run, name=f"{run.name}, {run.task}") if run.is_grid and names[run.name] > 1 else run for run in runs
    ]


_Groups = Sequence[Sequence[Run]]


def distinct_names(groups: _Groups, *, by_frames: bool = True) -> list[list[Run]]:
    """Groups of runs (one a RUN argument) with a name of their own each, told apart by what differs between them.

    That is the frames that the model was given, the haystack, the needles, a model argument, the task, the settings of
    the grid or ``--limit``: the first that tells all of a name apart, else as many as it takes. Where nothing of that
    differs, the date; and a number at the last.
    """
    named = [list(group) for group in groups]
    for tell in (_frames, _telling, _dates, _numbers)[not by_frames :]:
        for name in _repeated(named):
            places = [at for at, group in enumerate(named) if any(run.name == name for run in group)]
            tails = tell([[run for run in named[at] if run.name == name] for at in places], places)
            for at, tail in zip(places, tails, strict=True):
                named[at] = [replace(run, name=f"{name}{tail}") if run.name == name else run for run in named[at]]
    return named


def _argument(run: Run, key: str) -> str:
    """ "presentation=images"; what the run used where nothing was given, if it says so."""
    used = _model(run).get(key)
    value = run.model_args.get(key, shortened(used, _LONGEST_NAME) if isinstance(used, str) else None)
    return f"no {key}" if value is None else f"{key}={value}"


def _repeated(groups: _Groups) -> list[str]:
    """The names that several groups have."""
    names = Counter(name for group in groups for name in dict.fromkeys(run.name for run in group))
    return [name for name, count in names.items() if count > 1]


def _frames(groups: _Groups, _: Sequence[int]) -> list[str]:
    return [f"@{frames}" if (frames := frames_of(group[0])) else "" for group in groups]


def _telling(groups: _Groups, _: Sequence[int] = ()) -> list[str]:
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


def _dates(groups: _Groups, _: Sequence[int]) -> list[str]:
    dates = [str(group[0].settings.get("timing", {}).get("date", "")) for group in groups]
    return [f", of {date}" if date else "" for date in dates] if len(set(dates)) > 1 else [""] * len(groups)


def _numbers(_: _Groups, places: Sequence[int]) -> list[str]:
    return [f" ({place + 1})" for place in places]


def _traits(groups: _Groups) -> Iterator[list[str]]:
    """One trait after the other, as each group has it; the most telling first. The date tells nothing but the run."""
    firsts = [next((run for run in group if run.is_grid), group[0]) for group in groups]
    measured = [measured_on(run) for run in firsts]
    for what in ("haystack", "needles"):
        known = [one.get(what) for one in measured]
        yield [f"{what} {one.name}" if one else "" for one in known]
        yield [f"{what} {one.proven}" if one else "" for one in known]
    arguments = [run.model_args for run in firsts]
    # What was written where tells nothing of what was measured, unless it is the model.
    paths = {key for one in arguments for key, value in one.items() if "/" in value or key == "journal"}
    for key in dict.fromkeys(key for one in arguments for key in one if key == "pretrained" or key not in paths):
        yield [_argument(run, key) for run in firsts]
    yield ["task " + "+".join(dict.fromkeys(run.task for run in group)) for group in groups]
    for what in dict.fromkeys(what for one in measured for what in one):
        yield [f"{what} {one[what].name}" if what in one else "" for one in measured]
    yield [f"--limit {limit:g}" if (limit := _limit(run)) is not None else "" for run in firsts]
