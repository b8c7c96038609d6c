"""A run of jobs: journal, batches, processes, progress. Knows nothing of lmms-eval."""
