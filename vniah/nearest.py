"""The nearest of the known names, for an error about a name that is none of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'LongVA-7B'?", whatever the letters' case; empty where nothing is near."""
    by_folded = {one.casefold(): one for one in known}
    near = difflib.get_close_matches(word.casefold(), by_folded, n=1)
    # A beginning is near however much is missing: "H100" of "H100-80GB".
    near = near or [one for one in by_folded if word and one.startswith(word.casefold())][:1]
    return f"; did you mean {by_folded[near[0]]!r}?" if near else ""
