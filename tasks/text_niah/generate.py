"""Functions of `text_niah_generate`: any lmms-eval model reads the prompt as plain text and answers freely.

lmms-eval tells a task nothing of the model, so lengths are counted by ``TEXT_NIAH_TOKENIZER``, or estimated from
characters.
"""

from __future__ import annotations

from vniah.tasks.generated import GeneratedTask
from vniah.text import metrics

_TASK = GeneratedTask("text_niah", "text_niah_generate")

process_docs = _TASK.process_docs
doc_to_visual = _TASK.doc_to_visual
doc_to_text = _TASK.doc_to_text
process_results = _TASK.process_results
provenance = _TASK.provenance
mean_accuracy = metrics.mean_accuracy
control_accuracy = metrics.control_accuracy
effective_length = metrics.effective_length
grid = metrics.grid
mean = metrics.mean
