"""Between benchmark and models: what is asked, what is shown, and what it costs. Knows no task and no model."""
