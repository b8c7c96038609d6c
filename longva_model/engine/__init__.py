"""The engine: walks prompts as a tree of atoms on a model. Knows tokens, tensors and states; knows no task."""
