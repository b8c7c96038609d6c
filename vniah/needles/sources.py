"""Where a needle set comes from: a folder, a Hub dataset, or one of ours. One spec names one set on any machine.

Parquet is read with pyarrow alone, which is several times quicker to import than the datasets library.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from vniah.files import is_hub_id, read_json, read_json_lines, safe_relative_path, user_path
from vniah.hub import HubUnreachableError, fetch_dataset
from vniah.needles.needle import LookAlike, Needle, NeedleSet, Picture
from vniah.notices import notice
from vniah.visual.settings import DEFAULT_NEEDLES

FORMS = (
    "'builtin', 'icons[:seed[:count[:heldout|train]]]', a folder with needles.json, "
    f"or a Hub dataset such as {DEFAULT_NEEDLES!r}"
)
FAMILIES = ("builtin", "icons")
# id, image, texts under question and answer, and look-alikes
_Row: TypeAlias = tuple[str, Picture, Mapping[str, Any], tuple[LookAlike, ...]]
_BUILTIN = Path(__file__).with_name("builtin")
KEYS = ("id", "file", "question", "answer")
INDEX = "needles.json"
SPLIT = "test"
COLUMNS = ("image", "question", "answer")
PATTERNS = ("*.parquet", INDEX, "*metadata.jsonl", "*.png", "*.jpg", "*.jpeg", "*.webp")


def open_needles(spec: str) -> NeedleSet:
    """Open a needle set.

    Args:
        spec: one of

            - ``builtin``: twelve counterfactual scenes that we drew ourselves;
            - ``icons``, ``icons:seed``, ``icons:seed:count``, ``icons:seed:count:heldout|train``: icons with a
              digit, any number of them; see ``vniah/needles/icons.py``;
            - a folder with ``needles.json``, a list of {id, file, question, answer}, or that file; ``distractors`` of a
              needle are its look-alikes, a list of {file, answer} or of files;
            - a Hub dataset id ``owner/name`` with columns image, question, answer in its split "test". The
              ids are the row numbers from 0. The local cache is used before the Hub.

            A folder of the very name wins over all of these.

    When the paper's set is neither cached nor reachable, the built-in one takes its place, with a warning;
    ``NeedleSet.name`` then is "builtin".

    Raises:
        FileNotFoundError: no such folder, or the Hub has no such dataset.
        HubUnreachableError: the Hub does not answer, for any set but the paper's.
        ValueError: the spec is none of the above, or the set is faulty; see the readers.
    """
    spec = str(spec).strip()
    family, _, rest = spec.partition(":")
    folder = user_path(spec)
    if spec and family not in FAMILIES and folder.is_file():
        if folder.name != INDEX:
            raise ValueError(f"the needles {spec!r} are a file; give a folder that holds a {INDEX}")
        folder = folder.parent
        spec = str(folder)
    # A folder without an index counts for nothing where the spec means a set of ours.
    if spec and folder.is_dir() and (family not in FAMILIES or (folder / INDEX).is_file()):
        if family in FAMILIES:
            notice(f"the needles {spec!r} are those of {folder.absolute()} and not the set of that name")
        return read_folder(folder, name=spec)
    if family in FAMILIES or not is_hub_id(spec):
        return _open_local(spec, family, rest)

    try:
        snapshot = fetch_dataset(spec, allow_patterns=PATTERNS, progress=False)
        # cache/datasets--owner--name/snapshots/commit: files are links to the blobs two levels up.
        return read_snapshot(snapshot, spec, links_within=snapshot.parent.parent)
    except HubUnreachableError as error:
        if spec != DEFAULT_NEEDLES:
            raise
        notice(
            f"the needles {spec} are not in the cache and could not be fetched ({error}). Using the built-in needles "
            "instead: scores will not compare with the paper's. `vniah download needles` fetches the real ones; "
            "VNIAH_NEEDLES=builtin silences this"
        )
        return _open_local("builtin", "builtin", "")


def of_seed(spec: str, more: int) -> str:
    """The needle set of a seed ``more`` higher; the very same where a set has no seed."""
    from vniah.needles.icons import with_seed

    family, _, rest = spec.partition(":")
    folder = user_path(spec)
    drawn = family == "icons" and not folder.is_file() and not (folder.is_dir() and (folder / INDEX).is_file())
    return with_seed(spec, rest, more) if drawn else spec


def _open_local(spec: str, family: str, rest: str) -> NeedleSet:
    if spec == "builtin":
        # Known by its pixels and by the code that drew it, as when it was drawn anew each time (builtin/README.md).
        needles = (
            replace(needle, picture=Picture(needle.picture.load, f"built-in needle {needle.id!r}"))
            for needle in read_folder(_BUILTIN)
        )
        return NeedleSet("builtin", needles, recipe="builtin drawing 1")
    if family == "icons":
        from vniah.needles.icons import icon_needles

        return icon_needles(spec, rest)
    if spec and ("/" in spec or user_path(spec).exists()):
        raise FileNotFoundError(f"no folder of needles at {spec!r}; expected {FORMS}")
    raise ValueError(f"no needle set {spec!r}; expected {FORMS}")


def read_folder(folder: Path, *, name: str | None = None, links_within: Path | None = None) -> NeedleSet:
    """Read and check every needle of a folder; images are decoded once here and again when they are used.

    Args:
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
        got = json.dumps(rows)
        got = got if len(got) <= 80 else got[:77] + "..."
        raise ValueError(f"{index} must be a list of {{{', '.join(KEYS)}}}, got {got}")
    return _checked(name or str(folder), _folder_rows(rows, index, links_within))


def _folder_rows(rows: list[dict[str, Any]], index: Path, links_within: Path | None) -> Iterator[_Row]:
    for number, row in enumerate(rows):
        lacking = [key for key in KEYS if key not in row]
        if lacking:
            has = ", ".join(row) or "nothing"
            raise ValueError(f"{index}: entry {number} lacks {', '.join(lacking)}; it has {has}")
        needle_id = row["id"]
        if isinstance(needle_id, bool) or not isinstance(needle_id, (str, int)) or not str(needle_id).strip():
            raise ValueError(f"{index}: the id of entry {number} must be a text or a whole number, got {needle_id!r}")
        owner = f"needle {str(needle_id)!r} in {index}"
        picture = _file_picture(row["file"], index.parent, owner, links_within)
        lookalikes = tuple(_lookalikes(row.get("distractors", []), index.parent, owner, links_within))
        yield str(needle_id), picture, row, lookalikes


def _lookalikes(listed: Any, folder: Path, owner: str, links_within: Path | None) -> Iterator[LookAlike]:
    if not isinstance(listed, list):
        raise ValueError(f"the distractors of {owner} must be a list of files or of {{file, answer}}, got {listed!r}")
    for one in listed:
        told = one if isinstance(one, dict) else {"file": one}
        answer = told.get("answer", "")
        if "file" not in told or not isinstance(answer, str):
            raise ValueError(f"a distractor of {owner} must be a file or {{file, answer}}, got {one!r}")
        yield LookAlike(picture=_file_picture(told["file"], folder, owner, links_within), answer=answer)


def _checked(name: str, rows: Iterable[_Row]) -> NeedleSet:
    needles = []
    for needle_id, picture, row, distractors in rows:
        for one in (picture, *(lookalike.picture for lookalike in distractors)):
            one.load()
        texts = {"question": row["question"], "answer": row["answer"]}
        needles.append(Needle(id=needle_id, picture=picture, distractors=distractors, **texts))
    return NeedleSet(name, needles)


def _file_picture(name: Any, folder: Path, owner: str, links_within: Path | None) -> Picture:
    """The image file ``name`` of ``folder``, once it is known to be inside and present; ``owner`` is for errors."""
    try:
        path = safe_relative_path(name, folder, links_within=links_within)
    except ValueError as error:
        raise ValueError(f"the image of {owner}: {error}") from None
    if not path.is_file():
        raise FileNotFoundError(f"the image of {owner} is missing: no file {path}")
    return Picture(path, f"{owner} ({path.name})")


def read_snapshot(folder: Path, name: str, *, links_within: Path | None = None) -> NeedleSet:
    """The needles of a downloaded dataset: needles.json, Parquet, or images with metadata.jsonl.

    Raises:
        FileNotFoundError: an image that it names is missing.
        ValueError: no split "test", other columns, or a faulty row.
    """
    if (folder / INDEX).is_file():
        return read_folder(folder, name=name, links_within=links_within)
    tables = sorted(folder.rglob("*.parquet"))
    if tables:
        return _checked(name, _parquet_rows(_of_split(tables, folder, name), folder, name, links_within))
    return _checked(name, _image_folder_rows(folder, name, links_within))


def _of_split(tables: list[Path], folder: Path, name: str) -> list[Path]:
    """The files of split "test", named as datasets names them: data/test-00000-of-00001.parquet, or test/..."""
    chosen = [
        path
        for path in tables
        if path.stem == SPLIT or path.stem.startswith(f"{SPLIT}-") or SPLIT in path.relative_to(folder).parts[:-1]
    ]
    if not chosen:
        found = ", ".join(path.relative_to(folder).as_posix() for path in tables[:5])
        raise ValueError(f"the dataset {name} has no split {SPLIT!r}; it has {found}")
    return chosen


def _parquet_rows(tables: list[Path], folder: Path, name: str, links_within: Path | None) -> Iterator[_Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    for path in tables:
        try:
            file = pq.ParquetFile(path)
            _check_columns(file.schema_arrow.names, name)
            rows = file.read(columns=list(COLUMNS)).to_pylist()
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path.name} of {name} is not a readable Parquet file: {error}") from None
        for row in rows:
            # An image is {bytes, path} as datasets writes it, or bare bytes.
            cell, owner = row["image"], f"row {number} of {name}"
            stored, file_name = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
            if stored is None and isinstance(file_name, str):
                picture = _file_picture(file_name, folder, owner, links_within)
            elif isinstance(stored, bytes):
                picture = Picture(stored, owner)
            else:
                got = type(stored).__name__
                raise ValueError(f"the image of {owner} must be bytes or {{bytes, path}}, got {got}")
            yield str(number), picture, row, ()
            number += 1


def _image_folder_rows(folder: Path, name: str, links_within: Path | None) -> Iterator[_Row]:
    indexes = (folder / SPLIT / "metadata.jsonl", folder / "metadata.jsonl")
    index = next((path for path in indexes if path.is_file()), None)
    if index is None:
        raise ValueError(
            f"the dataset {name} has neither Parquet files nor {INDEX} nor metadata.jsonl; expected Parquet with "
            f"columns {', '.join(COLUMNS)} in split {SPLIT!r}"
        )
    for number, (line, row) in enumerate(read_json_lines(index)):
        if not isinstance(row, dict):
            raise ValueError(f"{index}, line {line} is no object; expected {{file_name, question, answer}}")
        _check_columns(["image" if key == "file_name" else key for key in row], name)
        owner = f"row {line - 1} of {name}"
        yield str(number), _file_picture(row["file_name"], index.parent, owner, links_within), row, ()


def _check_columns(found: list[str], name: str) -> None:
    if not set(COLUMNS) <= set(found):
        raise ValueError(f"the dataset {name} has columns {', '.join(found)}; expected {', '.join(COLUMNS)}")
