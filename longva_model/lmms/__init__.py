"""The lmms-eval model. The one room of the model side that knows lmms_eval."""
