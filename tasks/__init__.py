"""lmms-eval tasks: one folder a task, each a YAML and a thin module."""
