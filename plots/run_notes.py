"""What a reader of runs must know beside their figures: what each was measured on, and where runs differ in that.

A figure of a model says something only beside what it was measured on, so every drawing, table and page of runs
takes its words from here. What a run does not say (an old one, a journal) is called unknown and never assumed.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vniah.notices import shortened
from vniah.runs.results import Run

# Without these nobody can say what was measured.
_NEEDED = {"frames": ("haystack", "needles"), "tokens": ("haystack",)}
_PAPERS = {
    "frames": "the paper's film is another, and its needles are those of lmms-lab/v_niah_needles",
    "tokens": "the paper's text is Paul Graham's essays",
}
_PAPERS_TEXT = "baber/paul_graham_essays"
_DIGEST = re.compile(r"[0-9a-f]{16,}")
# Characters of what a file says that are shown: a figure has no room for more, and anyone may have written it.
_LONGEST_NAME, _LONGEST_WARNING = 200, 2000


@dataclass(frozen=True, slots=True, kw_only=True)
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
    if run.placed:
        lengths, depths = grid_of(run)
        found["grid"] = Input(name=f"{spans(lengths)} {run.unit} x {spans(depths)} %")
    found["scoring"] = _scoring(run)
    if run.unit == "frames":
        # Two decoders that give one fingerprint give the same pictures, and a drawn film has none.
        haystack = found["haystack"]
        drawn = haystack is not None and haystack.fingerprint.startswith(("synthetic", "images"))
        found["decoder"] = None if drawn else _value(task, "decoder")
        found["presentation"] = _value(task, "presentation")
    else:
        found |= {key: _value(task, key) for key in ("samples", "seed", "shared_distractors", "tokenizer")}
    return {what: one for what, one in found.items() if one is not None}


def grid_of(run: Run) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Lengths and depths of the whole grid: what was scored, and what is missing."""
    missing = run.missing()
    lengths = {*run.frames, *(length for length, _ in missing)}
    depths = {*run.depths, *(depth for _, depth in missing)}
    return tuple(sorted(lengths)), tuple(sorted(depths))


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
    line = ", ".join(parts)
    return line[:1].upper() + line[1:]


def measured_lines(runs: Sequence[Run]) -> list[str]:
    """What each needle grid of ours was measured on, those that share it on one line."""
    told = ((run.name, measured_line(run)) for run in runs if run.placed and not is_published(run))
    return [f"{names}: {line[:1].lower()}{line[1:]}." for names, line in _by_names(told) if line]


def unfinished(runs: Sequence[Run]) -> list[str]:
    """Which needle grids are not whole: "out: 35 of 840 cells"."""
    lines = []
    for run in runs:
        missing = sum(run.missing().values())
        if run.placed and missing:
            lines.append(f"{run.name}: partial, {len(run.placed):,} of {len(run.placed) + missing:,} cells.")
    return lines


def warnings_of(run: Run) -> tuple[str, ...]:
    """What the run itself warned of: needles that stood in for the paper's, and the like."""
    told = _told(run).get("warnings") or []
    return tuple(
        dict.fromkeys(shortened(one, _LONGEST_WARNING) for one in (told if isinstance(told, list) else [told]))
    )


def warned(runs: Sequence[Run]) -> list[str]:
    """The runs' own warnings, each with who gave it."""
    told = ((run.name, one) for run in runs for one in warnings_of(run))
    return [f"{names}: warning: {text}" for names, text in _by_names(told)]


def differences(runs: Sequence[Run]) -> list[str]:
    """Whether needle grids beside each other were measured on the same: a line where they were not, a line where
    nobody knows; nothing where they were. Published grids are compared with ours, and not among themselves."""
    lines = []
    for unit in dict.fromkeys(run.unit for run in runs if run.placed):
        these = [run for run in runs if run.placed and run.unit == unit]
        ours = [run for run in these if not is_published(run)]
        lines += _differing(ours) + _unknown(ours, unit)
        if len(ours) < len(these):
            lines += _beside_the_papers(ours, unit)
    return lines


def _differing(runs: Sequence[Run]) -> list[str]:
    known = {id(run): measured_on(run) for run in runs}
    parts = []
    for what in dict.fromkeys(what for one in known.values() for what in one):
        having = [(run, known[id(run)][what]) for run in runs if what in known[id(run)]]
        values = [one for _, one in having]
        if all(one.same(values[0]) for one in values):
            continue
        # Two films of one name are told apart by their fingerprints.
        names_say = len({one.name for one in values}) > 1
        texts = [one.name if names_say else one.proven for one in values]
        if all(run.name.endswith(f"{what} {text}") for (run, _), text in zip(having, texts, strict=True)):
            parts.append(f"{what} ({', '.join(dict.fromkeys(texts))})")
            continue
        told = _by_names((run.name, text) for (run, _), text in zip(having, texts, strict=True))
        apart = "; " if any("," in names for names, _ in told) else ", "
        parts.append(f"{what} ({apart.join(f'{names}: {text}' for names, text in told)})")
    if not parts:
        return []
    return [f"The runs differ in {_listed(parts)}: differences are not of the model alone."]


def _unknown(runs: Sequence[Run], unit: str) -> list[str]:
    """Runs that stand beside others and do not say what they were measured on."""
    lines = []
    silent: dict[tuple[str, ...], list[str]] = {}
    for run in runs if len(runs) > 1 else ():
        known = measured_on(run)
        lacking = tuple(what for what in _NEEDED[unit] if what not in known)
        if lacking:
            silent.setdefault(lacking, []).append(run.name)
    for lacking, names in silent.items():
        lines.append(
            f"Unknown: the {_listed(lacking)} of {_listed(dict.fromkeys(names))}; whether the runs were measured on "
            "the same is not known."
        )
    return lines


def _beside_the_papers(ours: Sequence[Run], unit: str) -> list[str]:
    """On what ours was measured, where it stands beside the paper's."""
    told = []
    for run in ours:
        known = measured_on(run)
        if unit == "tokens" and "haystack" in known and known["haystack"].name == _PAPERS_TEXT:
            continue
        parts = [f"{what} {known[what].name}" for what in _NEEDED[unit] if what in known]
        lacking = [what for what in _NEEDED[unit] if what not in known]
        parts += [f"{_listed(lacking)} unknown"] if lacking else []
        told.append((run.name, ", ".join(parts)))
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


def _told(run: Run) -> Mapping[str, Any]:
    task = run.settings.get("task")
    return task if isinstance(task, Mapping) else {}


def _named(task: Mapping[str, Any], what: str) -> Input | None:
    name = shortened(task.get(f"{what}_name") or task.get(what) or "", _LONGEST_NAME)
    proof = shortened(task.get(f"{what}_fingerprint") or task.get(f"{what}_sha256") or "", _LONGEST_NAME)
    return Input(name=name or short(proof), fingerprint=proof) if name or proof else None


def _value(task: Mapping[str, Any], key: str) -> Input | None:
    value = task.get(key)
    return None if value in (None, "") else Input(name=shortened(value, _LONGEST_NAME))


def _scoring(run: Run) -> Input | None:
    """As the run says; an older one by its task's name or the ids that only teacher forcing has."""
    told = _told(run).get("scoring")
    if not told and "_generate" in run.task:
        told = "generated"
    if not told and any(cell.answer_ids for cell in run.scored):
        told = "teacher-forced"
    return Input(name=shortened(told, _LONGEST_NAME)) if told else None


def is_absent(run: Run) -> bool:
    """Whether the right answer without the needle is that it is not there: then saying so is no guess."""
    return "absent" in run.task or _told(run).get("variant") == "absent"


def control_name(run: Run) -> str:
    """What the score without a needle is: a guess, or abstention, where higher is better."""
    return "abstained" if is_absent(run) else "no-needle control"


def control_note(run: Run) -> str:
    """The same with what it counts."""
    return "abstained (right to say 'not there')" if is_absent(run) else "no-needle control"


def distinct_grids(runs: Sequence[Run]) -> list[Run]:
    """The runs, grids of one name told apart by their tasks: one run of text NIAH has three."""
    names = Counter(run.name for run in runs if run.placed)
    return [replace(run, name=f"{run.name}, {run.task}") if run.placed and names[run.name] > 1 else run for run in runs]


def limits(runs: Sequence[Run]) -> list[str]:
    """Which runs took but the first of their documents (lmms-eval's ``--limit``)."""
    notes = []
    for run in runs:
        limit = run.settings.get("model", {}).get("limit")
        if isinstance(limit, (int, float)) and limit > 0:
            # Below 1 it is a share of them.
            part = f"the first {limit:g}" if limit >= 1 else f"{limit:.0%} of the"
            notes.append(f"{run.name}: --limit, {part} documents of each task.")
    return list(dict.fromkeys(notes))


def left_out(runs: Sequence[Run]) -> list[str]:
    """Which runs could not ask every question, for want of the video."""
    notes = []
    for run in runs:
        count = sum(value for key, value in run.metrics.items() if key.endswith("_missing_questions"))
        if count:
            notes.append(f"{run.name}: {count:g} questions of {run.task} left out, their videos missing or broken.")
    return list(dict.fromkeys(notes))
