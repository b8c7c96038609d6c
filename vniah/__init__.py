"""vniah: the benchmark. Measures how much long visual context a model really uses.

Importing it brings in neither torch nor transformers nor lmms_eval.
"""

import os as _os

__version__ = "0.1.0"

# Installed, tasks, training and plots lie in this folder. In a checkout they lie beside it, and Python started
# there ("python -m lmms_eval", torchrun) finds this file before any installed one.
_checkout = _os.path.dirname(_os.path.dirname(_os.path.abspath(__file__)))
if _os.path.isfile(_os.path.join(_checkout, "pyproject.toml")) and not _os.path.isdir(
    _os.path.join(__path__[0], "tasks")
):
    __path__.append(_checkout)
