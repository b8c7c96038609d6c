"""Checkpoints on disk: the two layouts, reading, checking, fingerprints, converting. Knows no model from inside."""
