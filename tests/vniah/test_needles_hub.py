"""Needle sets from a Hub on 127.0.0.1: the paper's set, its fallback, and what is wrong with others."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import hub_tables
import pytest
from hub_server import LoopbackHub
from PIL import Image

from vniah.hub import HubUnreachableError, RepositoryMissingError
from vniah.needles import open_needles
from vniah.notices import recorded
from vniah.visual.settings import DEFAULT_NEEDLES

pytest.importorskip("pyarrow")

PARQUET = "data/test-00000-of-00001.parquet"


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (10, 6), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def parquet(**columns: list[Any]) -> bytes:
    return hub_tables.parquet([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])


def paper_like(images: list[Any] | None = None) -> bytes:
    return parquet(
        image=images or [{"bytes": png(200), "path": "0.png"}, {"bytes": png(100), "path": None}],
        question=["\nFind the frame.\nA. x\nB. y\nAnswer. \n", "\nWhich colour?"],
        answer=["B", "Yellow"],
    )


def test_papers_set(online: LoopbackHub) -> None:
    online.add_repo(DEFAULT_NEEDLES, {PARQUET: paper_like(), "README.md": "card", "huge.bin": b"x"})
    needles = open_needles(DEFAULT_NEEDLES)
    assert (needles.name, needles.ids) == (DEFAULT_NEEDLES, ("0", "1"))
    first, second = needles
    assert first.question == "\nFind the frame.\nA. x\nB. y\nAnswer."
    assert (first.answer, first.kind, second.answer, second.kind) == ("B", "choice", "Yellow", "word")
    assert first.image.getpixel((3, 3)) == (200, 0, 0)
    assert online.count("GET", "huge.bin") == 0

    online.stop()
    assert open_needles(DEFAULT_NEEDLES).fingerprint == needles.fingerprint


def test_several_files_and_other_splits(online: LoopbackHub) -> None:
    online.add_repo(
        "org/set",
        {
            "data/test-00000-of-00002.parquet": paper_like(),
            "data/test-00001-of-00002.parquet": paper_like(),
            "data/train-00000-of-00001.parquet": parquet(other=[1]),
        },
    )
    assert open_needles("org/set").ids == ("0", "1", "2", "3")
    online.add_repo("org/train-only", {"data/train-00000-of-00001.parquet": paper_like()})
    with pytest.raises(ValueError, match=r"no split 'test'; it has data/train-00000"):
        open_needles("org/train-only")


def test_images_beside_an_index(online: LoopbackHub) -> None:
    line = json.dumps({"file_name": "pics/0.png", "question": "Q?", "answer": "A1"})
    online.add_repo("org/images", {"test/metadata.jsonl": line + "\n", "test/pics/0.png": png(9)})
    assert open_needles("org/images").get("0").image.getpixel((0, 0)) == (9, 0, 0)
    entry = [{"id": "x", "file": "0.png", "question": "Q?", "answer": "A1"}]
    online.add_repo("org/folder", {"needles.json": json.dumps(entry), "0.png": png(8)})
    assert open_needles("org/folder").get("x").image.getpixel((0, 0)) == (8, 0, 0)


def test_image_file_named_in_parquet_must_stay_in_the_snapshot(online: LoopbackHub, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(1))
    cells = [{"bytes": None, "path": str(tmp_path / "secret.png")}]
    online.add_repo("org/set", {PARQUET: parquet(image=cells, question=["Q?"], answer=["A"])})
    with pytest.raises(ValueError, match=r"row 0 of org/set.*leaves its folder"):
        open_needles("org/set")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (parquet(picture=[b"x"], question=["q"], label=["a"]), "columns picture, question, label; expected image, que"),
        (paper_like([{"bytes": b"junk", "path": None}] * 2), "row 0 of org/set cannot be read"),
        (parquet(image=[1, 2], question=["q"] * 2, answer=["a"] * 2), "must be bytes or"),
        (parquet(image=[png(1)], question=["  "], answer=["a"]), "the question of needle '0'"),
        (parquet(image=[png(1)], question=["q"], answer=[None]), "the answer of needle '0'"),
        (b"no parquet at all", "not a readable Parquet file"),
    ],
)
def test_faulty_datasets(online: LoopbackHub, content: bytes, message: str) -> None:
    online.add_repo("org/set", {PARQUET: content})
    with pytest.raises(ValueError, match=message):
        open_needles("org/set")


def test_dataset_without_any_needles(online: LoopbackHub) -> None:
    online.add_repo("org/set", {"README.md": "nothing here"})
    with pytest.raises(ValueError, match="neither Parquet files nor"):
        open_needles("org/set")


def test_missing_dataset_is_an_error_even_for_the_papers_name(online: LoopbackHub) -> None:
    for spec in ("org/none", DEFAULT_NEEDLES):
        with pytest.raises(RepositoryMissingError, match=f"no dataset '{spec}'"):
            open_needles(spec)


def test_unreachable_hub_falls_back_for_the_papers_set_alone_and_says_so(online: LoopbackHub) -> None:
    online.stop()
    needles = open_needles(DEFAULT_NEEDLES)
    (told,) = recorded()
    assert re.search(r"Using the built-in needles.*vniah download needles", told)
    assert needles.name == "builtin"
    open_needles("builtin")
    with pytest.raises(HubUnreachableError, match="org/other"):
        open_needles("org/other")
    assert recorded() == (told,)


def test_folder_wins_over_a_hub_name(online: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "org" / "set"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(png(3))
    (folder / "needles.json").write_text(json.dumps([{"id": "mine", "file": "a.png", "question": "Q?", "answer": "A"}]))
    assert open_needles("org/set").ids == ("mine",)
    assert not online.requests


def test_cached_set_opens_offline_in_a_fresh_process(loopback_hub: LoopbackHub, tmp_path: Path) -> None:
    """Endpoint and cache come from the environment alone, and neither torch nor datasets is imported."""
    loopback_hub.add_repo(DEFAULT_NEEDLES, {PARQUET: paper_like()})
    code = (
        "import sys; from vniah.needles import open_needles; n = open_needles('lmms-lab/v_niah_needles');"
        "print(n.name, *n.ids, sorted({'torch', 'datasets', 'transformers'} & set(sys.modules)))"
    )
    env = loopback_hub.env(tmp_path / "home")
    for _ in range(2):
        run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert run.stdout.strip() == f"{DEFAULT_NEEDLES} 0 1 []", run.stderr
        loopback_hub.stop()
