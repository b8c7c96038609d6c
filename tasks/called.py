"""The models that this process's lmms-eval was called for: what its command line and its ``--config`` say of them.

How a model samples frames, and in which batches, decides what a task may count on. lmms-eval 0.7.3 makes the model
first and then gives a task's functions documents alone; a task's settings may depend on the model's name, on nothing
else of it. So the command line is read, in this file alone. Of ``lmms_eval.simple_evaluate`` nothing is known.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class CalledModel(NamedTuple):
    """One ``--model`` with its ``--model_args`` (as text, "" for none) and ``--batch_size``."""

    name: str
    args: str
    batch_size: str


def called_models(argv: Sequence[str] | None = None) -> list[CalledModel]:
    """One model for each run of the ``--config``; the command line wins over that file, as it does for lmms-eval.

    Args:
        argv: the command line's arguments; this process's if None.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for option in ("--model", "--model_args", "--batch_size", "--config"):
        parser.add_argument(option)
    given = vars(parser.parse_known_args(sys.argv[1:] if argv is None else list(argv))[0])
    return [_model({**run, **given}) for run in _configured(given.pop("config", ""))]


def _model(known: Mapping[str, Any]) -> CalledModel:
    args = known.get("model_args") or ""
    if isinstance(args, Mapping):
        args = ",".join(f"{key}={value}" for key, value in args.items())
    return CalledModel(str(known.get("model") or "longva_ring"), str(args), str(known.get("batch_size", "1")))


def _configured(path: str) -> list[dict[str, Any]]:
    """The runs of a ``--config``, which lmms-eval has read by now; without one, the command line's own."""
    import yaml

    try:
        read = yaml.safe_load(Path(path).read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError, yaml.YAMLError):
        read = {}
    return [one for one in (read if isinstance(read, list) else [read]) if isinstance(one, dict)]
