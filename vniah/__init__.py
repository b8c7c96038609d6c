"""vniah: the benchmark. Measures how much long visual context a model really uses.

Importing it brings in neither torch nor transformers nor lmms_eval.
"""

__version__ = "0.1.0"
