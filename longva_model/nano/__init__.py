"""The shipped checkpoint: weights, config and tokenizer as files. No code; ``backends/loading.py`` finds it."""
