"""A dict for metrics of many values: whole in lmms-eval's results file, left out of its printed table."""

from __future__ import annotations

from typing import Any


class QuietDict(dict[str, Any]):
    """Says that it is empty (``len``) but is not: lmms-eval prints every row as wide as its widest value,
    except values of length 0, which it passes over.

    A breakdown of fifty labels would make each row of the table 2,000 columns wide. Content, truth, equality,
    iteration and JSON are those of a plain dict.
    """

    def __len__(self) -> int:
        return 0

    def __bool__(self) -> bool:
        return any(True for _ in self)
