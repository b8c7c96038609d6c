"""V-RULER's tasks: see ``vniah/ruler``."""
