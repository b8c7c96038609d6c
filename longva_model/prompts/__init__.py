"""Prompts and chat templates, and the visuals in them, as requests. Knows no model."""
