"""The ``vniah`` command: one module a command under ``vniah/commands``, imported when it is called.

``vniah --help`` must answer in under 0.5 s, so the names and one-line helps stand here and nothing
heavier than typer is imported. A command module has one function ``command`` with typer annotations,
and imports what it needs inside it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

COMMANDS = {
    "download": "Fetch needles, a model or the dataset of a task into the local cache.",
    "compose": "Write the mp4 of one cell: a haystack with a needle in it.",
    "run": "Score needle tasks on a model, and draw their heatmaps.",
    "plan": "Show cells, tokens, FLOPs, memory and time of a grid before running it.",
    "heatmap": "Draw the depth-by-frames heatmap of a run, or the paper's.",
    "compare": "Put runs beside each other and beside the published figures.",
    "figure": "Draw the paper's other figures: Figures 4, 5 and 7, accuracy by frames or category, perplexity.",
    "report": "Write one self-contained HTML page of runs, down to each needle and prediction.",
    "perplexity": "Measure text perplexity at growing context lengths.",
    "ask": "Ask a model about a video or images at the terminal.",
    "convert": "Convert a checkpoint between the released layout and ours, bit-exact.",
    "sweep-rope": "Score a grid at several RoPE bases and name the best.",
    "train": "Train by a recipe, or plan its memory.",
    "doctor": "Say what is installed, what is missing and how to get it.",
    "tasks-dir": "Print the folder of our lmms-eval tasks.",
}


class _LazyGroup(TyperGroup):
    """Lists every command by name; imports one only when it is called, or its own help is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A stand-in with a name and a line of help, which is all that the overview needs."""
        if cmd_name not in COMMANDS:
            return None
        return _as_command(cmd_name, lambda: None, COMMANDS[cmd_name])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and command is not None:
            module = importlib.import_module(f"vniah.commands.{name.replace('-', '_')}")
            command = _as_command(name, module.command)
        return name, command, rest


def _as_command(name: str, function: Callable[..., None], help_line: str | None = None) -> Any:
    one = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    one.command(name, help=help_line)(function)
    return typer.main.get_command(one)


app = typer.Typer(
    name="vniah",
    cls=_LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Measure how much long visual context a model really uses.",
)


@app.callback()
def _root() -> None:
    """Measure how much long visual context a model really uses."""


def main() -> None:
    """Run the command line. A bad value, a missing file or a full disk is one line and exit code 2."""
    try:
        app()
    except (ValueError, OSError) as error:
        print(f"vniah: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
