"""Checkpoints on disk: layouts, conversion, loading, fingerprints. Knows nothing of prompts."""
