"""Needles from a folder: images beside a needles.json, a list of {id, file, question, answer}."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vniah.files import read_json, safe_relative_path
from vniah.needles.needle import Needle, NeedleSet, Picture

KEYS = ("id", "file", "question", "answer")
INDEX = "needles.json"


def read_folder(folder: Path, *, name: str | None = None, links_within: Path | None = None) -> NeedleSet:
    """Read and check every needle of a folder; images are decoded once here and again when they are used.

    Args:
        folder: holds needles.json and the images it names.
        name: of the set; the folder's path if None.
        links_within: where links in the folder may lead; a Hub snapshot links to the blobs beside it.

    Raises:
        FileNotFoundError: no needles.json, or an image that it names is missing.
        ValueError: it is not JSON or not such a list, an image is corrupt or lies outside the folder, a text is
            empty, or an id occurs twice.
    """
    index = folder / INDEX
    if not index.is_file():
        raise FileNotFoundError(f"{folder} has no {INDEX}; expected a list of {{{', '.join(KEYS)}}} beside the images")
    rows = read_json(index)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{index} must be a list of {{{', '.join(KEYS)}}}, got {_shown(rows)}")
    needles = [_needle(row, number, index, links_within) for number, row in enumerate(rows)]
    return NeedleSet(name or str(folder), needles)


def _needle(row: Mapping[str, Any], number: int, index: Path, links_within: Path | None) -> Needle:
    lacking = [key for key in KEYS if key not in row]
    if lacking:
        raise ValueError(f"{index}: entry {number} lacks {', '.join(lacking)}; it has {', '.join(row) or 'nothing'}")
    needle_id = row["id"]
    if isinstance(needle_id, bool) or not isinstance(needle_id, (str, int)) or not str(needle_id).strip():
        raise ValueError(f"{index}: the id of entry {number} must be a text or a whole number, got {needle_id!r}")
    picture = checked_file(row["file"], index.parent, f"needle {str(needle_id)!r} in {index}", links_within)
    return Needle(id=str(needle_id), question=row["question"], answer=row["answer"], picture=picture)


def checked_file(name: Any, folder: Path, owner: str, links_within: Path | None = None) -> Picture:
    """The image file ``name`` of ``folder``, once it is known to be inside, present and readable.

    Args:
        owner: what to call it in an error.

    Raises:
        ValueError, FileNotFoundError: it is not.
    """
    try:
        path = safe_relative_path(name, folder, links_within=links_within)
    except ValueError as error:
        raise ValueError(f"the image of {owner}: {error}") from None
    if not path.is_file():
        raise FileNotFoundError(f"the image of {owner} is missing: no file {path}")
    picture = Picture(stored=path, name=f"{owner} ({path.name})")
    picture.load()
    return picture


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
