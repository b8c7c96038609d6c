"""Functions of `text_niah_generate`: any lmms-eval model reads the prompt as plain text and answers freely.

lmms-eval tells a task nothing of the model, so lengths are counted by ``TEXT_NIAH_TOKENIZER``, or
estimated from characters. What a task asks for (distractors, variant) is in its one-line seed data set,
since functions named in a YAML do not see its metadata.
"""

from __future__ import annotations

import json
from typing import Any

from vniah.tasks.text_niah import books, metrics
from vniah.text import TextBook, TextSettings
from vniah.text.score import generated_correct


def _book(doc: dict[str, Any]) -> TextBook:
    return books.open_book(TextSettings(**json.loads(doc["settings"])), as_text=True)


def process_docs(dataset: Any) -> Any:
    """Expand the seed data set into the grid's rows; each row carries the settings it was made from.

    lmms-eval retries whatever is raised here five times and then hides it, so an error is put in a row,
    and raised when the first prompt is asked for.
    """
    import datasets

    try:
        settings = TextSettings.read(dataset[0])
        book = books.open_book(settings, as_text=True)
    except (ValueError, OSError) as error:
        return datasets.Dataset.from_list([{"error": str(error)}])
    told = {"settings": json.dumps(settings.as_dict()), "provenance": json.dumps(books.provenance(book))}
    return datasets.Dataset.from_list([{**row, **told} for row in books.rows(book)])


def doc_to_visual(doc: dict[str, Any]) -> list[Any]:
    return []


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    """The whole prompt: megabytes at the paper's lengths.

    Raises:
        ValueError: bad settings, or a haystack or tokenizer that cannot be had.
    """
    if doc.get("error"):
        raise ValueError(doc["error"])
    return _book(doc).compose(books.cell_of(doc)).text()


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    book = _book(doc)
    predicted = results[0] if results else ""
    correct = generated_correct(predicted, book.puzzle(books.cell_of(doc)), book.settings.variant)
    found = metrics.sample_metrics(book, doc, correct, {"predicted": predicted}, teacher_forced=False)
    for value in found.values():
        if isinstance(value, dict) and "num_tokens" in value:
            value["provenance"] = doc["provenance"]
    return found


mean_accuracy = metrics.mean_accuracy
control_accuracy = metrics.control_accuracy
effective_length = metrics.effective_length
grid = metrics.grid
mean = metrics.mean
