"""Training: recipes as data, and the stages that they name, from text to DPO. Knows no lmms-eval and no figure."""
