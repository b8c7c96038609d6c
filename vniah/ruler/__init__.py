"""V-RULER: what a plain needle does not test: look-alikes, counts, order, keys, chains, times, motion.

Everything is drawn by code and seeded by the cell, so anyone can rerun and pass it on. ``kinds.py`` has the tests,
``pictures.py`` what they show. Knows films and grids; knows neither models nor lmms-eval.
"""
