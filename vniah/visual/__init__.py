"""V-NIAH: one image hidden among the frames of a film (paper section 4).

Knows no model, but for how those of lmms-eval are told to take every frame (``hosts.py``).
"""
