"""A run: a needle task measured on a model, from its cells to the files that are read back.

Knows nothing of how a model computes; it is handed one that answers cells (``runs/measure.py``).
"""
