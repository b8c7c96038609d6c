"""The engine: prompts as atoms, the tree that they share prefixes in, the walk, its chunks and its state.

Knows tokens, tensors and states, and of a model what ``backends/backend.py`` says; knows no task.
"""
