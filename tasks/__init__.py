"""lmms-eval tasks: one folder a task, each of YAML files and thin modules. Knows no model of ours."""
