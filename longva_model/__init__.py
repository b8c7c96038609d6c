"""longva_model: LongVA as a Hugging Face model. ``vniah convert`` and ``longva_ring`` run on it.

Names are imported when they are asked for, so importing the package costs nothing; transformers' Auto classes
find the model as soon as they are imported, before or after (see ``_auto.py``).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longva_model.backbone import LongVAModel
    from longva_model.config import LongVAConfig
    from longva_model.modeling import LongVAForConditionalGeneration
    from longva_model.processing import LongVAProcessor

_NAMES = {
    "LongVAConfig": "longva_model.config",
    "LongVAForConditionalGeneration": "longva_model.modeling",
    "LongVAModel": "longva_model.backbone",
    "LongVAProcessor": "longva_model.processing",
}
__all__ = ["LongVAConfig", "LongVAForConditionalGeneration", "LongVAModel", "LongVAProcessor"]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


from longva_model._auto import install  # noqa: E402 - last, so that what it triggers finds the names above

install()
