"""MLVU, all nine tasks: the group `mlvu_longva` of dev and test, each with a choice and a generation part."""
