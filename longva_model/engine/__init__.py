"""The engine: runs a ``RequestTree`` on a model. Knows segments, tensors and caches; knows no task."""
