"""Scored cells as lines of JSON: lmms-eval's logged samples and our journals, read and checked.

A sample's row holds every metric's dict under the metric's name; ours carry all that is known of a
scored cell (see ``ScoredCell``). A journal's row holds the document and the leaf's result, from which
correctness follows. Knows nothing about folders or runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from vniah.answers import is_right
from vniah.files import parse_json
from vniah.runs.journal import is_sound, say_damaged
from vniah.runs.results import ScoredCell
from vniah.runs.scoring import teacher_forced_match

_MOST_FRAMES = 10**12
_OWN = {field.name for field in fields(ScoredCell)} - {"extra"}


def read_cells(path: Path, *, last_wins: bool, also: Sequence[Path] = ()) -> tuple[ScoredCell, ...]:
    """Every scored cell of a samples file or journal, in file order.

    ``also``: files read behind it as if they went on in it, such as the journals of a run's other processes.

    A cell that was scored twice is one cell when both scores agree; when they do not, the later one
    counts in a journal (``last_wins``), and in a samples file it is an error. A journal may hold runs of several
    models, settings or haystacks, since its keys tell them apart; one grid is not made of them.

    Raises:
        ValueError: naming the file and line: not JSON, not a scored cell's types, scored twice, of another run.
    """
    found: dict[tuple[Any, ...], ScoredCell] = {}
    settings: set[str] = set()
    content: dict[tuple[Any, ...], str] = {}
    for where, row in (row for one in (path, *also) for row in _rows(one, forgive_last=last_wins)):
        scored = _from_journal(row, where) or _scored_dict(row)
        if scored is None:
            continue
        cell = _cell(scored, row, where)
        key = (cell.num_frames, cell.depth_percent, cell.needle, cell.extra.get("task"), cell.extra.get("sample"))
        settings.update({str(row["settings"])} if "settings" in row else ())
        if len(settings) > 1 or content.setdefault(key, str(row.get("key"))) != str(row.get("key")):
            raise ValueError(
                f"{where}: lines before it are of another model, haystack or setting, and a journal of "
                "several runs is no one's grid; read the finished run's samples file, or give each its own journal=PATH"
            )
        before = found.get(key)
        if before is not None and not last_wins and before.correct != cell.correct:
            raise ValueError(
                f"{where}: a second, different score for {cell.num_frames} frames, "
                f"depth {cell.depth_percent}, needle {cell.needle!r}"
            )
        found[key] = cell
    return tuple(found.values())


def _rows(path: Path, *, forgive_last: bool) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(file and line, row). ``forgive_last``: a last line that was cut off while being written is skipped.

    Lines of a journal that do not match their checksum are left out, which is said.
    """
    damaged: list[int] = []
    checked = False
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}, line {number}"
            if not line.strip():
                continue
            sound = is_sound(line)
            checked = checked or sound is True
            if sound is False or (checked and sound is None):
                if line.endswith(b"\n"):
                    damaged.append(number)
                continue
            try:
                row = parse_json(line, where)
            except ValueError as error:
                if forgive_last and not line.endswith(b"\n"):
                    return
                raise ValueError(f"{error}; the file is damaged") from None
            if not isinstance(row, dict):
                raise ValueError(f"{where}: expected a JSON object, got {type(row).__name__}")
            yield where, row
    say_damaged(path, damaged, "they are left out; a rerun of the same command computes what they held again")


def _scored_dict(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The part of a row that describes a scored cell: the row itself or one of its values, the fullest."""
    described = [
        candidate
        for candidate in (row, *row.values())
        if isinstance(candidate, Mapping)
        and "correct" in candidate
        and ("num_frames" in candidate or "context_length" in candidate)
    ]
    return max(described, key=len, default=None)


def _from_journal(row: Mapping[str, Any], where: str) -> Mapping[str, Any] | None:
    """What a journal's row says of a cell, its correctness worked out; ``None`` for any other row."""
    doc, result = row.get("doc"), row.get("result")
    if not isinstance(doc, Mapping) or not isinstance(result, Mapping) or "needle" not in doc:
        return None
    text, answer_ids = str(result.get("text", "")), result.get("answer_ids") or []
    if answer_ids:
        correct = teacher_forced_match(result.get("predicted_ids") or [], answer_ids)
    elif "choice" in doc:
        correct = is_right(text, str(doc.get("answer", "")), str(doc.get("question", "")))
    else:
        raise ValueError(
            f"{where}: a free answer of {row.get('task', 'a task')}, whose correctness the journal does not hold; "
            "read the samples file of the finished run instead"
        )
    return {**doc, **result, "predicted": text, "correct": correct}


def _cell(scored: Mapping[str, Any], row: Mapping[str, Any], where: str) -> ScoredCell:
    """Check the parts of a scored cell and keep what else the row says under ``extra``."""
    frames = scored.get("num_frames", scored.get("context_length"))
    depth, control = scored.get("depth_percent"), bool(scored.get("control", False))
    if not isinstance(frames, int) or isinstance(frames, bool) or not 1 <= frames <= _MOST_FRAMES:
        raise ValueError(f"{where}: num_frames must be a whole number from 1 to {_MOST_FRAMES:,}, got {frames!r}")
    if isinstance(depth, float) and depth.is_integer():
        depth = int(depth)
    if control:
        depth = None  # a journal's document has -1 there
    elif not isinstance(depth, int) or not 0 <= depth <= 100:
        raise ValueError(f"{where}: depth_percent must be a whole number from 0 to 100, got {depth!r}")
    if scored["correct"] not in (True, False):
        raise ValueError(f"{where}: correct must be true or false, got {scored['correct']!r}")
    extra = {key: value for key, value in scored.items() if key not in _OWN and key != "context_length"}
    if "num_frames" not in scored:
        extra["unit"] = "tokens"
    for key in ("task", "model"):
        if isinstance(row.get(key), str):
            extra.setdefault(key, row[key])
    if isinstance(row.get("input"), str):
        extra.setdefault("question", row["input"])
    index = scored.get("needle_index")
    try:
        return ScoredCell(
            num_frames=frames,
            depth_percent=depth,
            needle=str(scored.get("needle", "")),
            correct=bool(scored["correct"]),
            control=control,
            needle_index=None if control or index is None else int(index),
            predicted=str(scored.get("predicted", "")),
            answer=str(scored.get("answer", row.get("target", ""))),
            predicted_ids=tuple(int(one) for one in scored.get("predicted_ids") or ()),
            answer_ids=tuple(int(one) for one in scored.get("answer_ids") or ()),
            answer_logprobs=tuple(float(one) for one in scored.get("answer_logprobs") or ()),
            extra=extra,
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{where}: needle_index, ids or log-probabilities are no numbers ({error})") from None
