"""Where the haystack comes from: folders, the Hub, built-in prose; and what is said when it cannot be had."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import pytest
from hub_server import LoopbackHub
from hub_tables import parquet

from vniah.text.haystack import ESSAYS, from_texts, open_text_haystack


def text_of(haystack: object, count: int = 10_000) -> str:
    return "".join(itertools.islice(haystack.sentences(), count))  # type: ignore[attr-defined]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))


def test_folder_is_read_in_name_order_and_hashed(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes(b"Second here.\r\nYes.")
    (tmp_path / "a.txt").write_bytes("\ufeffFirst, caf\u00e9.".encode())
    (tmp_path / "c.md").write_text("not this")
    (tmp_path / "._a.txt").write_bytes(b"\xff")  # what macOS leaves beside files on other disks
    (tmp_path / "empty.txt").touch()
    haystack = open_text_haystack(str(tmp_path))
    expected = "First, caf\u00e9.\n\nSecond here.\nYes.\n\n"
    assert text_of(haystack) == expected
    assert haystack.fingerprint == hashlib.sha256(expected.encode()).hexdigest()
    assert haystack.num_chars == len(expected)
    assert text_of(open_text_haystack(str(tmp_path / "b.txt"))) == "Second here.\nYes.\n\n"
    (tmp_path / "a.txt").rename(tmp_path / "A.TXT")
    assert text_of(open_text_haystack(str(tmp_path))) == expected
    (tmp_path / "A.TXT").write_text("Other.")
    assert open_text_haystack(str(tmp_path)).fingerprint != haystack.fingerprint


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no \.txt files"):
        open_text_haystack(str(tmp_path))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8"):
        open_text_haystack(str(tmp_path))
    with pytest.raises(ValueError, match="empty"):
        from_texts("nothing", ["  \n", ""])
    with pytest.raises(FileNotFoundError, match="no text haystack '/no/such/folder'"):
        open_text_haystack("/no/such/folder")


def test_built_in_with_a_seed() -> None:
    assert open_text_haystack("builtin").fingerprint == open_text_haystack("builtin:0").fingerprint
    other = open_text_haystack("builtin:7")
    assert other.name == "builtin:7" and other.num_chars is None
    assert text_of(other, 20) != text_of(open_text_haystack("builtin"), 20)
    with pytest.raises(ValueError, match="'builtin:x'"):
        open_text_haystack("builtin:x")


def test_default_is_the_essays_from_the_hub(online: LoopbackHub) -> None:
    files = {
        "data/train-00001-of-00002.parquet": parquet([{"text": "Third essay."}]),
        "data/train-00000-of-00002.parquet": parquet([{"text": "First essay."}, {"text": "Second essay."}]),
    }
    online.add_repo(ESSAYS, files, repo_type="dataset")
    haystack = open_text_haystack()
    assert haystack.name == ESSAYS and not haystack.note
    assert text_of(haystack) == "First essay.\n\nSecond essay.\n\nThird essay.\n\n"
    online.stop()
    assert open_text_haystack(ESSAYS).fingerprint == haystack.fingerprint, "from the cache"


def test_dataset_without_text_column_is_named(online: LoopbackHub) -> None:
    online.add_repo("org/set", {"a.parquet": parquet([{"body": "x"}])}, repo_type="dataset")
    with pytest.raises(ValueError, match=r"no column 'text' \(a\.parquet has body\)"):
        open_text_haystack("org/set")


@pytest.mark.usefixtures("offline")
def test_unreachable_default_falls_back_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    haystack = open_text_haystack()
    assert haystack.name == "builtin"
    assert ESSAYS in haystack.note and "built-in" in haystack.note
    assert "built-in prose stands in" in capsys.readouterr().err


@pytest.mark.usefixtures("offline")
def test_unreachable_dataset_that_was_named_is_an_error() -> None:
    with pytest.raises(OSError, match="org/essays"):
        open_text_haystack("org/essays")
