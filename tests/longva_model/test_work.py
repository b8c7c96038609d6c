"""Automatic journals are bounded by what they take of the disk, and none in use goes, whatever the clock says."""

from __future__ import annotations

import os
from pathlib import Path

from longva_model.engine.work import _forget_oldest
from vniah.journal import Journal


def journal(path: Path, touched: float) -> Path:
    path.write_bytes(b"x" * 100)
    os.utime(path, (touched, touched))
    return path


def test_journals_that_fit_stay_however_old_the_clock_says_they_are(tmp_path: Path) -> None:
    kept = [journal(tmp_path / f"{number}.jsonl", 1e9 * number) for number in range(5)]
    _forget_oldest(tmp_path, tmp_path / "own.jsonl", 500)
    assert all(path.exists() for path in kept)


def test_the_longest_untouched_go_first_with_those_of_their_other_processes(tmp_path: Path) -> None:
    first, second, third = (journal(tmp_path / f"{name}.jsonl", at) for name, at in (("a", 3e9), ("b", 1), ("c", 2)))
    ranks = [journal(tmp_path / f"{name}.jsonl.rank1", 1) for name in "abc"]
    _forget_oldest(tmp_path, tmp_path / "own.jsonl", 450)
    assert [path.exists() for path in (first, second, third, *ranks)] == [True, False, True, True, False, True]


def test_one_in_use_and_the_one_that_is_wanted_stay(tmp_path: Path) -> None:
    wanted, idle, other = (journal(tmp_path / f"{name}.jsonl", at) for name, at in (("w", 1), ("i", 3), ("u", 9)))
    with Journal(tmp_path / "used.jsonl") as used:
        used.put("a", {"score": 1})
        os.utime(used.path, (2, 2))
        with Journal(tmp_path / "u.jsonl.rank1") as rank:
            _forget_oldest(tmp_path, wanted, 0)
            assert rank.path.exists() and other.exists(), "its process of rank 1 still writes"
        assert wanted.exists() and used.path.exists() and not idle.exists()
        _forget_oldest(tmp_path, wanted, 0)
        assert not other.exists()
