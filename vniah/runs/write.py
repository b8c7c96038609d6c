"""Results files in the layout that lmms-eval writes, so that every reader of ours takes both for the same.

``OUT/<model>/<date>_results.json`` and, a task, ``OUT/<model>/<date>_samples_<task>.jsonl``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vniah.files import replacing

# lmms-eval dates its files in the time of Singapore wherever it runs; in one folder the newest must be the newest.
_LMMS_EVAL_OFFSET = 8 * 3600


def model_folder(output: Path, model: str) -> Path:
    """Where the results of a model go, named as lmms-eval names it."""
    name = "/".join(model.split("/")[-2:])
    clean = re.sub(r"[\"<>:/|\\?*\[\]]+", "__", name)
    return output / (clean if clean.strip(".") else "model")


def check_writable(output: Path) -> None:
    """Raise unless a results folder can be made at ``output``; leaves nothing behind but the folder.

    Raises:
        OSError: a file stands there, or the disk does not let us write.
    """
    if output.is_file():
        raise NotADirectoryError(f"the output {output} is a file; give a folder")
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(
            error.errno, f"cannot write results: {error.strerror}; give another folder with -o", str(output)
        ) from None


def write_results(folder: Path, results: Mapping[str, Any], samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> Path:
    """Write an evaluation; files appear whole, the results last.

    Args:
        folder: see ``model_folder``.
        results: the content of results.json.
        samples: rows by task.

    Returns:
        The results file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # All of it before any file: what JSON cannot hold must not leave half an evaluation.
    lines = {
        task: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) for task, rows in samples.items()
    }
    with _free_date(folder) as date:
        whole = json.dumps({**results, "date": date}, indent=2, ensure_ascii=False)
        for task, text in lines.items():
            _write(folder / f"{date}_samples_{task}.jsonl", text)
        path = folder / f"{date}_results.json"
        _write(path, whole)
    return path


def sample_row(doc_id: int, question: str, target: str, response: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """A logged sample as lmms-eval writes it."""
    return {
        "doc_id": doc_id,
        "target": target,
        "filtered_resps": response,
        "doc_hash": hashlib.sha256(f"{question}\n{target}".encode()).hexdigest(),
        **metrics,
        "input": question,
    }


@contextlib.contextmanager
def _free_date(folder: Path) -> Iterator[str]:
    """Now as lmms-eval writes it, at a second that no evaluation in the folder has, nor another process takes."""
    moment = time.time()
    while True:
        date = time.strftime("%Y%m%d_%H%M%S", time.gmtime(moment + _LMMS_EVAL_OFFSET))
        claim = folder / f".{date}.claim"
        moment += 1
        try:
            claim.touch(exist_ok=False)
        except FileExistsError:
            continue
        try:
            if not any(folder.glob(f"{date}_*")):
                yield date
                return
        finally:
            claim.unlink(missing_ok=True)


def _write(path: Path, text: str) -> None:
    with replacing(path) as part, part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
