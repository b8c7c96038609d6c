"""What a GPU session found, as tables in Markdown. Knows no measurement: a row's keys are its columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Of a table that is for reading.
_MOST_ROWS = 40


def markdown(told: Mapping[str, Any]) -> str:
    """A session's results for docs/benchmarks.md."""
    device = next(iter(_tables(told, "device").get("device", [])), {})
    head = [f"## {device.get('device', 'A device that was not asked')}", ""]
    versions = ", ".join(f"{name} {value}" for name, value in device.items() if name != "device" and value)
    stopped = "; interrupted" if told["interrupted"] else ""
    small = " --small" if told["small"] else ""
    head += [
        f"`python {told['program']} --minutes {told['minutes']:g}{small}`, {told['at'][:10]}{stopped}. {versions}",
        "",
    ]
    shown = ("part", "status", "why", "expected s", "limit s", "s")
    lines = [*head, *table([{key: part.get(key) for key in shown} for part in told["parts"]])]
    for part in told["parts"]:
        for name, rows in part.get("tables", {}).items():
            shown_rows = table(rows) if len(rows) <= _MOST_ROWS else [f"{len(rows)} rows, in the JSON file."]
            lines += ["", f"**{part['part']}: {name}**", "", *shown_rows]
        lines += ["", *(f"- {part['part']}: {note}" for note in part["notes"])] if part.get("notes") else []
    return "\n".join(lines) + "\n"


def _tables(told: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    return next((one.get("tables", {}) for one in told["parts"] if one["part"] == part), {})


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows as lines; columns are all their keys, as they come."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns), *([cell(key, row.get(key)) for key in columns] for row in rows)]
    return [_line(line) for line in lines]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(one.replace('|', '/') for one in cells)} |"


def cell(key: str, value: Any) -> str:
    """A value by its kind; under a key that begins with "of" a share."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    if key.startswith("of "):
        return f"{value:.0%}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2e}" if 0 < abs(value) < 1e-3 else f"{value:.4g}"
