"""The lmms-eval models ``longva_ring`` and ``hf_tree``. The one room of the model side that knows lmms_eval."""
