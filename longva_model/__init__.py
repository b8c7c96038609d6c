"""longva_model: LongVA as a Hugging Face model. ``vniah convert`` and ``longva_ring`` run on it.

Names are imported when they are asked for, so importing the package costs nothing. transformers' Auto classes find
the model whichever is imported first: our modules register themselves at their end, and each is imported with the
Auto module that it belongs to.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longva_model.backbone import LongVAModel
    from longva_model.config import LongVAConfig
    from longva_model.modeling import LongVAForConditionalGeneration
    from longva_model.processing import LongVAProcessor

__all__ = ["LongVAConfig", "LongVAForConditionalGeneration", "LongVAModel", "LongVAProcessor"]
_HOMES = dict(zip(__all__, ("config", "modeling", "backbone", "processing"), strict=True))
# Auto modules whose own of ours is still to be imported.
_PENDING = {
    "transformers.models.auto.configuration_auto": "longva_model.config",
    "transformers.models.auto.modeling_auto": "longva_model.modeling",
    "transformers.models.auto.processing_auto": "longva_model.processing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _AfterImport(importlib.abc.MetaPathFinder):
    """Lets the other finders find an Auto module, and imports ours when that module has been run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        ours = _PENDING.pop(fullname, None)
        spec = None if ours is None else importlib.util.find_spec(fullname)  # popped, so this asks everyone but us
        if ours is None or spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_and_register(module: ModuleType) -> None:
            run(module)
            # Where ours is what asked for the Auto module, this returns it half-imported, and its end registers it.
            importlib.import_module(ours)

        spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _AfterImport())
for _auto in [name for name in _PENDING if name in sys.modules]:
    importlib.import_module(_PENDING.pop(_auto))
