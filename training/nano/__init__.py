"""The nano model's own parts: its vocabulary, synthetic text, pictures and tower. The stages themselves are shared."""
