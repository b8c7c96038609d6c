"""The ``vniah`` command: one module a command under ``vniah/commands``, imported when it is called.

``vniah --help`` must answer in under 0.3 s, so the names and one-line helps stand here and nothing
heavier than typer is imported. A command module has one function ``command`` with typer annotations,
and imports what it needs inside it.

Whatever is wrong with what a user gave is one line on standard error and exit code 2; Ctrl-C is one line and 130.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from vniah.runs.launcher import end_with_launcher

COMMANDS = {
    "download": "Fetch needles, a model or the dataset of a task into the local cache.",
    "inspect": "Say what would be sampled of a video, a folder or a picture, and whether it reads to its end.",
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
# What a stopped command does when it is given again.
GOES_ON = {
    "run": "the same command goes on where it was",
    "sweep-rope": "the same command goes on where it was",
    "train": "the same command goes on from the last checkpoint",
}
_HELP_NAMES = {"help_option_names": ["-h", "--help"]}


class _LazyGroup(TyperGroup):
    """Lists every command by name; imports one only when it is called, or its own help is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A stand-in with a name and a line of help, which is all that the overview needs."""
        return _as_command(cmd_name, lambda: None, COMMANDS[cmd_name]) if cmd_name in COMMANDS else None

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stopped:
            hint = str(stopped) or GOES_ON.get(ctx.invoked_subcommand, "")
            # A terminal shows "^C", or half a progress bar, where the cursor is.
            start = "\n" if sys.stderr.isatty() else ""
            print(f"{start}vniah: stopped{f'; {hint}' if hint else ''}", file=sys.stderr)
            sys.exit(130)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, rest = args[0], args[1:]
        if name in COMMANDS:
            module = importlib.import_module(f"vniah.commands.{name.replace('-', '_')}")
            # Each paragraph in one line, which is then as wide as the terminal.
            paragraphs = (module.command.__doc__ or "").split("\n\n")
            text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
            return name, _as_command(name, module.command, text), rest
        if not name.startswith("-"):
            from vniah.notices import did_you_mean

            raise ValueError(f"no command {name!r}{did_you_mean(name, COMMANDS) or '; `vniah --help` lists them'}")
        return super().resolve_command(ctx, args)


def _as_command(name: str, function: Callable[..., None], text: str) -> Any:
    one = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    one.command(name, help=text, context_settings=_HELP_NAMES)(function)
    return typer.main.get_command(one)


app = typer.Typer(
    name="vniah",
    cls=_LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=_HELP_NAMES,
    help="Measure how much long visual context a model really uses.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from vniah import __version__

        print(f"vniah {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Measure how much long visual context a model really uses."""


def main() -> None:
    """Run the command line. A bad value, a missing file or a full disk is one line and exit code 2."""
    end_with_launcher()
    try:
        code = app(prog_name="vniah", standalone_mode=False)
    except (ValueError, OSError) as error:
        _fail(str(error))
    except Exception as error:
        # Options that cannot be parsed. Which click they come from, a module of its own or typer's, depends on typer.
        if not hasattr(error, "format_message"):
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()  # type: ignore[attr-defined]
            sys.exit(2)
        context = getattr(error, "ctx", None)
        hint = f"; `{context.command_path} --help` lists what it takes" if context is not None else ""
        _fail(f"{' '.join(error.format_message().split()).rstrip('.')}{hint}")
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> NoReturn:
    from vniah.notices import printable

    print(f"vniah: error: {printable(' '.join(message.split(chr(10))))}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
