"""Files of data sets as the Hub holds them: tables, archives and cards, made in memory."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image


def parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows as the Hub holds them; a column of PIL images is one of ``datasets``' images."""
    columns = {key for row in rows for key, value in row.items() if isinstance(value, Image.Image)}
    out = io.BytesIO()
    if not columns:
        # Importing datasets takes seconds that plain tables need not wait for.
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), out)
        return out.getvalue()
    import datasets

    table = datasets.Dataset.from_list([{key: _png(value) for key, value in row.items()} for row in rows])
    for column in sorted(columns):
        table = table.cast_column(column, datasets.Image())
    table.to_parquet(out)
    return out.getvalue()


def _png(value: Any) -> Any:
    if not isinstance(value, Image.Image):
        return value
    out = io.BytesIO()
    value.save(out, "png")
    return {"bytes": out.getvalue(), "path": None}


def zipped(files: Mapping[str, Path | bytes]) -> bytes:
    """A zip archive of those names, each with content or the file to take it from."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content if isinstance(content, bytes) else content.read_bytes())
    return out.getvalue()


def card(**configs: str) -> str:
    """A dataset card that names configurations and their only split, ``name="split"``."""
    if not configs:
        return "---\n---\n"
    entries = [
        {"config_name": name, "data_files": [{"split": split, "path": f"{name}/{split}-*"}]}
        for name, split in configs.items()
    ]
    return f"---\nconfigs: {json.dumps(entries)}\n---\n"
