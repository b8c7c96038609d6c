"""The one file of this room that knows lmms_eval: our models by entry point, our tasks by a lazy hook.

lmms-eval 0.7.3 finds models through the entry-point group ``lmms_eval.models`` but has no such door for
tasks. The callable named there also installs an import hook: when ``lmms_eval.tasks`` is first imported,
``TaskManager.initialize_tasks`` learns our folder as one more default. Nothing of the installation may raise: lmms-eval
only warns, and every model and task of ours would be gone.
"""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from vniah.notices import notice

_TARGET = "lmms_eval.tasks"
_NEEDS_HF_HOME = "longva_paper_video"  # see vniah.tasks.paper.upstream


def tasks_dir() -> Path:
    """The folder with our task YAML files; ValueError where they are not installed."""
    spec = importlib.util.find_spec("vniah.tasks")
    places = list(spec.submodule_search_locations or []) if spec else []
    if not places:
        raise ValueError("the package vniah.tasks is not installed; reinstall vniah (pip install .)")
    return Path(places[0])


def manifests() -> list[Any]:
    """Entry point ``lmms_eval.models``: the manifests of our models; installs the task hook beside them."""
    from lmms_eval.models.registry_v2 import ModelManifest

    install_task_hook()
    return [
        ModelManifest(
            model_id=name,
            simple_class_path=f"longva_model.lmms.longva_ring.{kind}",
            chat_class_path=f"longva_model.lmms.longva_ring.{kind}Chat",
        )
        for name, kind in (("longva_ring", "LongVARing"), ("hf_tree", "HfTree"))
    ] + [ModelManifest(model_id="served", simple_class_path="vniah.served.lmms_model.Served")]


def host_classes() -> dict[str, tuple[str, str]]:
    """Every model that lmms-eval has, by each of its names: its own name, and the path of the class that answers."""
    try:
        from lmms_eval.models import MODEL_REGISTRY_V2
    except ImportError as error:
        raise ValueError(f"lmms-eval does not load ({error}); pip install 'lmms-eval>=0.7.3,<0.8'") from error
    known = {name: MODEL_REGISTRY_V2.resolve(name) for name in MODEL_REGISTRY_V2.list_model_names()}
    return {name: (found.model_id, found.class_path) for name, found in known.items()}


def install_task_hook() -> None:
    """Make lmms-eval index our tasks by default, now if its tasks are imported, else when they are."""
    try:
        loaded = sys.modules.get(_TARGET)
        if loaded is not None and hasattr(loaded, "TaskManager"):
            _extend(loaded)
        elif not any(isinstance(finder, _TaskFinder) for finder in sys.meta_path):
            sys.meta_path.insert(0, _TaskFinder())
    except Exception as error:
        _warn(error)


def _extend(module: ModuleType) -> None:
    """Let ``TaskManager`` index our folder when the defaults are included, and prepare our groups; idempotent."""
    manager = module.TaskManager
    initialize, read = manager.initialize_tasks, manager._get_config
    if getattr(initialize, "_vniah", False):
        return

    @functools.wraps(initialize)
    def initialize_tasks(self: Any, include_path: Any = None, include_defaults: bool = True) -> Any:
        try:
            if include_defaults:
                chosen = [include_path] if isinstance(include_path, str) else list(include_path or [])
                # Behind the user's own folders; built-in names win in lmms-eval whatever the order.
                include_path = [*chosen, str(tasks_dir())]
        except Exception as error:
            _warn(error)
        return initialize(self, include_path=include_path, include_defaults=include_defaults)

    @functools.wraps(read)
    def _get_config(self: Any, name: str) -> Any:
        # The one moment before lmms-eval imports the tasks of a group; nothing that a group's YAML names is called.
        if name == _NEEDS_HF_HOME:
            importlib.import_module("vniah.tasks.paper.upstream").name_hf_home()
        return read(self, name)

    initialize_tasks._vniah = True  # type: ignore[attr-defined]
    manager.initialize_tasks, manager._get_config = initialize_tasks, _get_config


class _TaskFinder:
    """Has ``lmms_eval.tasks`` extended once it is really imported, and is gone then.

    Looking the module up (``importlib.util.find_spec``) imports nothing and must not use the hook up.
    """

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target) if fullname == _TARGET else None
        if spec is not None and spec.loader is not None:
            # The loader was made for this look-up alone.
            spec.loader.exec_module = functools.partial(self._load, spec.loader.exec_module)  # type: ignore[method-assign]
        return spec

    def _load(self, load: Callable[[ModuleType], None], module: ModuleType) -> None:
        load(module)
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
        try:
            _extend(module)
        except Exception as error:
            _warn(error)


def _warn(error: Exception) -> None:
    notice(
        f"vniah could not add its tasks to lmms-eval ({error}); "
        'pass --include_path "$(vniah tasks-dir)" to lmms-eval instead'
    )
