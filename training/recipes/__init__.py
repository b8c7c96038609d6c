"""The shipped recipes, one YAML file each; ``training/recipe.py`` reads them. No code."""
