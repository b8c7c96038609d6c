"""The command line itself: its help, its version, and one line for whatever is wrong or stopped."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from typer.testing import CliRunner

import vniah
from vniah import cli

Outcome = tuple[int, str, str]


def test_the_version_is_told(main: Callable[..., Outcome]) -> None:
    assert main("--version") == (0, f"vniah {vniah.__version__}\n", "")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_a_short_flag_for_its_help_that_fits_the_terminal(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    short, long = (CliRunner().invoke(cli.app, [name, flag]) for flag in ("-h", "--help"))
    assert short.exit_code == 0 and short.output == long.output and name in short.output
    assert max(map(len, short.output.splitlines())) <= 80


def test_paragraphs_of_help_are_as_wide_as_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    lines = CliRunner().invoke(cli.app, ["plan", "-h"]).output.splitlines()
    (paragraph,) = [line for line in lines if "The tree computes each shared prefix once" in line]
    assert paragraph.rstrip().endswith("read or fetched.")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_loses_no_word(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text in square brackets may be read as a style: "[@split]" of "owner/name[:config][@split]" was gone."""
    monkeypatch.setenv("COLUMNS", "1000")
    shown = " ".join(CliRunner().invoke(cli.app, [name, "-h"]).output.split())
    function = importlib.import_module(f"vniah.commands.{name.replace('-', '_')}").command
    written = [function.__doc__]
    for hint in get_type_hints(function, include_extras=True).values():
        written += [
            one.help for one in get_args(hint) if getattr(one, "help", None) and not getattr(one, "hidden", False)
        ]
    for text in written:
        assert " ".join(text.split()) in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["heatmp"], "no command 'heatmp'; did you mean 'heatmap'?"),
        (["zzz"], "no command 'zzz'; `vniah --help` lists them"),
        (["--foo"], "No such option: --foo"),
        (["heatmap", "--publishd", "x"], "--published"),
        (["plan", "--gpus", "many"], "'--gpus'"),
        (["report"], "`vniah report --help` lists what it takes"),
    ],
)
def test_what_cannot_be_parsed_is_one_line_and_code_2(
    main: Callable[..., Outcome], arguments: list[str], said: str
) -> None:
    code, out, err = main(*arguments)
    assert (code, out) == (2, "") and err.startswith("vniah: error: ") and err.count("\n") == 1 and said in err


def test_no_arguments_show_the_commands(main: Callable[..., Outcome]) -> None:
    code, out, err = main()
    # Older releases of click end with 0 here.
    assert code in (0, 2) and all(name in out + err for name in cli.COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["perplexity", "--text", "no/such/text"], "'no/such/text' is no folder or file"),
        (["perplexity", "--text", "x", "--lengths", "many"], "cannot read 'many' in lengths"),
        (["perplexity", "--text", "x", "--csv", "x.txt"], "expected a name ending in .csv"),
        (
            ["convert", "no/such/model", "new", "--to", "our"],
            "no layout 'our'; expected ours or released; did you mean",
        ),
        (["convert", "no/such/model", "."], ". is there already and is not overwritten"),
        (["ask", "no-film.mp4", "What?"], "no file 'no-film.mp4'"),
        (["compose", "no-film.mp4", "-o", "x.mp4"], "no haystack at no-film.mp4"),
        (["plan", "--model", "no-model"], "no model shape 'no-model'"),
        (["train", "no-recipe"], "no recipe 'no-recipe'"),
    ],
)
def test_bad_input_is_said_before_torch_is_loaded(arguments: list[str], said: str, tmp_path: Path) -> None:
    """Which takes seconds."""
    code = (
        f"import sys; from vniah import cli; sys.argv = ['vniah', *{arguments!r}]\n"
        "try: cli.main()\n"
        "finally: assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("vniah: error: ") and said in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [(["train", "nano"], "; the same command goes on from the last checkpoint"), (["tasks-dir"], "")],
)
def test_ctrl_c_is_one_line(
    main: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, arguments: list[str], hint: str
) -> None:
    import vniah.lmms_plugin
    import vniah.training.runner

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(vniah.training.runner, "run_recipe", stopped)
    monkeypatch.setattr(vniah.lmms_plugin, "tasks_dir", stopped)
    assert main(*arguments) == (130, "", f"vniah: stopped{hint}\n")


def test_what_goes_on_is_a_command() -> None:
    assert set(cli.GOES_ON) <= set(cli.COMMANDS)
