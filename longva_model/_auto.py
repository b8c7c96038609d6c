"""Makes transformers' Auto classes find LongVA without importing transformers here.

Our modules register themselves with the Auto classes at their end. Here it is seen to that each of ours is
imported with the Auto module it belongs to: at once where that is loaded already, else right after it has
been loaded. So ``import longva_model`` stays free of torch, and the order of imports does not matter.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

_OURS_BY_AUTO_MODULE = {
    "transformers.models.auto.configuration_auto": "longva_model.config",
    "transformers.models.auto.modeling_auto": "longva_model.modeling",
    "transformers.models.auto.processing_auto": "longva_model.processing",
}


class _AfterImport(importlib.abc.MetaPathFinder):
    """Lets the other finders find an Auto module, and imports ours when that module has been run."""

    def __init__(self, pending: dict[str, str]) -> None:
        self.pending = pending

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        ours = self.pending.pop(fullname, None)
        if ours is None:
            return None
        # Popped above, so this asks everyone but us.
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_and_register(module: ModuleType) -> None:
            run(module)
            # Where ours is what asked for the Auto module, this returns it half-imported, and its end registers it.
            importlib.import_module(ours)

        spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Import ours for the Auto modules that are loaded, and watch for the others."""
    pending = {auto: ours for auto, ours in _OURS_BY_AUTO_MODULE.items() if auto not in sys.modules}
    if pending:
        sys.meta_path.insert(0, _AfterImport(pending))
    for auto, ours in _OURS_BY_AUTO_MODULE.items():
        if auto not in pending:
            importlib.import_module(ours)
