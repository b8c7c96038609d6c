"""Frame embeddings: computed once, ahead of need, kept on disk. Knows neither prompts nor tasks."""
