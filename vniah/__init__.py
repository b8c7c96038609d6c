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
    """Measure a needle task on a model: ``vniah.evaluate("lmms-lab/LongVA-7B", "vniah", frames="200-3000:200")``.

    The ``Run`` has ``cells`` (a pandas table), ``table()``, ``heatmap(path)`` and ``report(path)``.

    Args:
        model: a name as ``vniah run --model`` takes it, or a function ``(mp4_path, question) -> str`` that answers
            freely (for ``vniah_generate``; the path is ``None`` for ``text_niah_generate``).
        task: a needle task, not a group of several.
        options: ``limit``: score the first so many cells alone. ``output``: keep results files in that folder, as
            ``vniah heatmap`` and lmms-eval know them. ``name``: what to call the run; the model's name otherwise.
            ``threshold``: of the effective length, 0.9. The inputs of V-NIAH, ``frames, depths, haystack, needles,
            decoder, seeds``, or of text NIAH, ``lengths, depths, samples, haystack, tokenizer, seed,
            shared_distractors``; a grid is a text, a number or a list of numbers.
            What is left out is read from ``VNIAH_*`` or ``TEXT_NIAH_*``, else is the task's own. And arguments of
            the model, such as ``dtype``, ``device``, ``chunk_tokens`` (see ``longva_model.arguments.ModelArgs``).

    Raises:
        ValueError: no such task or model argument, bad inputs, or a model that does not suit the task.
        FileNotFoundError: no such model, film or needle set.
        vniah.runs.measure.CellError: the function failed at a cell; names it.
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
