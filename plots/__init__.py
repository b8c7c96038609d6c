"""Figures, tables and pages of runs: each kind is data first, then a drawing of it.

Nothing is imported at the top: matplotlib and seaborn come in with the modules that draw.
"""
