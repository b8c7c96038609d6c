"""A dict that lmms-eval's table leaves out and its results file keeps."""

from __future__ import annotations

import copy
import json

import pytest

from vniah.notices import QuietDict

CONTENT = {"short": {"accuracy": 50.0, "questions": 2}, "long": {}}


def test_content_is_that_of_a_plain_dict() -> None:
    quiet = QuietDict(CONTENT)
    assert quiet == CONTENT and list(quiet) == list(CONTENT) and bool(quiet)
    assert copy.deepcopy(quiet) == CONTENT
    assert json.loads(json.dumps({"r": quiet})) == json.loads(json.dumps({"r": quiet}, indent=2)) == {"r": CONTENT}
    assert not QuietDict()


def test_lmms_evals_table_passes_over_it() -> None:
    pytest.importorskip("lmms_eval")
    from lmms_eval.utils import make_table

    results = {"task": {"alias": "task", "plain,none": 1.0, "wide,none": QuietDict(CONTENT)}}
    table = make_table({"results": results, "n-shot": {"task": 0}})
    assert "plain" in table and "wide" not in table and "accuracy" not in table
