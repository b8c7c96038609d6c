"""The plugin: models by entry point, tasks by a hook that never raises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import types
from typing import Any

import pytest

from vniah import lmms_plugin
from vniah.notices import recorded

pytest.importorskip("lmms_eval")


def test_models_and_tasks_are_found_with_no_flag() -> None:
    """In one process, since lmms-eval is imported in seconds."""
    code = """
import importlib.util, sys
from lmms_eval.models import get_model
assert "lmms_eval.tasks" not in sys.modules, "the plugin must not import the tasks by itself"
# Looking the tasks up does not use the hook up.
assert importlib.util.find_spec("lmms_eval.tasks") and importlib.util.find_spec("lmms_eval.tasks")
from lmms_eval.tasks import TaskManager
# Of lmms-eval's own tasks one index, which takes seconds; that a folder of the user's joins ours is tested below.
tasks = TaskManager("ERROR").all_tasks
names = {"vniah", "vniah_generate", "vniah_nano", "text_niah", "videomme_longva", "mlvu_longva", "longva_paper"}
missing = sorted(names.difference(tasks))
without = TaskManager("ERROR", include_defaults=False)
print(missing, "mme" in tasks, len(without.all_tasks))
print(*(get_model(name, force).__name__ for name in ("longva_ring", "hf_tree") for force in (False, True)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().splitlines()[-2:] == [
        "[] True 0",
        "LongVARingChat LongVARing HfTreeChat HfTree",
    ]


def fake_tasks_module() -> Any:
    class TaskManager:
        def initialize_tasks(self, include_path: Any = None, include_defaults: bool = True) -> Any:
            return include_path, include_defaults

        def _get_config(self, name: str) -> Any:
            return name, os.environ.get("HF_HOME")

    module = types.ModuleType("lmms_eval.tasks")
    module.TaskManager = TaskManager  # type: ignore[attr-defined]
    return module


def test_extending_twice_adds_our_folder_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module = fake_tasks_module()
    monkeypatch.setitem(sys.modules, "lmms_eval.tasks", module)
    lmms_plugin.install_task_hook()
    lmms_plugin.install_task_hook()
    ours = str(lmms_plugin.tasks_dir())
    assert module.TaskManager().initialize_tasks() == ([ours], True)
    assert module.TaskManager().initialize_tasks("mine") == (["mine", ours], True)
    assert module.TaskManager().initialize_tasks(["a"], include_defaults=False) == (["a"], False)


def test_a_failure_is_a_warning_that_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    module = fake_tasks_module()
    monkeypatch.setitem(sys.modules, "lmms_eval.tasks", module)
    lmms_plugin.install_task_hook()

    def broken() -> Any:
        raise ValueError("no tasks here")

    monkeypatch.setattr(lmms_plugin, "tasks_dir", broken)
    assert module.TaskManager().initialize_tasks() == (None, True)
    assert re.search(r"--include_path .*tasks-dir", "".join(recorded()))


def test_manifests_never_import_the_tasks() -> None:
    manifests = lmms_plugin.manifests()
    assert [manifest.model_id for manifest in manifests] == ["longva_ring", "hf_tree", "served"] and not recorded()
