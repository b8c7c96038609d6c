"""vniah: the benchmark. Measures how much long visual context a model really uses.

``vniah.evaluate`` is its front door in Python. Importing it brings in neither torch nor transformers nor lmms_eval.
"""

from __future__ import annotations

import os as _os
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:
    from vniah.runs.run import Run as _Run

__version__ = "0.2.0.dev0"

# Installed, tasks, training and plots lie in this folder. In a checkout they lie beside it, and Python started
# there ("python -m lmms_eval", torchrun) finds this file before any installed one.
_checkout = _os.path.dirname(_os.path.dirname(_os.path.abspath(__file__)))
if _os.path.isfile(_os.path.join(_checkout, "pyproject.toml")) and not _os.path.isdir(
    _os.path.join(__path__[0], "tasks")
):
    __path__.append(_checkout)


def evaluate(model: _Any, task: str, **options: _Any) -> _Run:
    """Measure a needle task on a model.

    Options: frames, depths, haystack, needles, decoder (V-NIAH); lengths, depths, haystack, samples, tokenizer, seed,
    shared_distractors (text NIAH); limit, output, name; and any model argument (dtype, device, chunk_tokens, ...). What
    each is: ``help(vniah.commands.run.evaluate)``.

    ``vniah.evaluate("nano", "vniah_nano", frames="16,32")`` returns a ``Run`` with ``cells`` (a pandas table),
    ``table()``, ``heatmap(path)`` and ``report(path)``. ``model`` may be a function ``(mp4_path, question) -> str``.
    """
    from vniah.commands.run import evaluate as run

    return run(model, task, **options)


def load(path: str | _os.PathLike[str], *, task: str | None = None, partial: bool = False) -> _Run:
    """Read a finished run: an output folder of lmms-eval or ``vniah run``, a results or samples file, or a journal.

    Args:
        task: which, where there are several.
        partial: accept a grid that is not complete.
    """
    from vniah.runs.read import read_run

    return read_run(_os.fspath(path), task=task, partial=partial)
