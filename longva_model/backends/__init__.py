"""What the engine needs of a model, and the model families that give it. Knows no task and no lmms-eval."""
