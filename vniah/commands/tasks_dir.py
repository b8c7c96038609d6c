"""``vniah tasks-dir``: where our lmms-eval tasks are, for ``lmms-eval --include_path``."""

from __future__ import annotations


def command() -> None:
    """Print the folder of our lmms-eval tasks, for `lmms-eval --include_path "$(vniah tasks-dir)"`."""
    from vniah.lmms_plugin import tasks_dir

    print(tasks_dir())
