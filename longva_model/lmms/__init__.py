"""The lmms-eval model and its arguments. The one room of the model side that knows lmms_eval."""
