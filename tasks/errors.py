"""What goes wrong while a task's rows are made, carried to where lmms-eval lets it be seen.

lmms-eval retries whatever the making of rows raises five times and then hides it in a ``RetryError``. So an error
becomes the only row, and is raised when that row's prompt is asked for, which is when the task is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vniah.notices import printable

_KEY = "error"


def rows_or_error(make: Callable[[], Iterable[Mapping[str, Any]]]) -> Any:
    """The data set of the rows that ``make`` gives, or of the error that it raises."""
    import datasets

    try:
        rows = [dict(row) for row in make()]
    except (ValueError, OSError) as error:
        rows = [{_KEY: printable(error)}]
    return datasets.Dataset.from_list(rows)


def raise_error_of(doc: Mapping[str, Any]) -> None:
    """Raise what a row carries in place of a document, as a ValueError."""
    if doc.get(_KEY):
        raise ValueError(doc[_KEY])
