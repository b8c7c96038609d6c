"""A run: a needle task measured on a model, from its cells to the files that are read back.

Read back (``read.py``), a run is one table of cells (``run.py``), whether it comes from lmms-eval's files or a journal.
Knows nothing of how a model computes; it is handed one that answers cells (``measure.py``).
"""
