"""What the engine needs of a model, and what gives it: LongVA, its baselines, text models, any video-language model.

The last is ``any_model.py``, by a checkpoint's own processor and chat template (docs/structure.md says what a prompt
passes there). Knows no task and no lmms-eval.
"""
