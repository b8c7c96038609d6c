"""``vniah`` in this process, for tests of what a command prints."""

from __future__ import annotations

from typing import Any

from typer.testing import CliRunner

from vniah.cli import app


def output_of(*arguments: str, **given: Any) -> str:
    """What ``vniah ARGUMENTS`` prints; its errors as the exceptions that the command line would print."""
    result = CliRunner().invoke(app, arguments, catch_exceptions=False, **given)
    assert result.exit_code == 0, result.output
    return str(result.stdout)
