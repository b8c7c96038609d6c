"""``vniah download`` against a Hub on 127.0.0.1, and the index of our tasks that it reads."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
import typer
from hub_server import LoopbackHub
from PIL import Image
from typer.testing import CliRunner, Result

from vniah import hub
from vniah.commands.download import command
from vniah.hub import HubUnreachableError, RepositoryMissingError, cached_snapshot
from vniah.runs.open import expand, read_index
from vniah.visual.settings import DEFAULT_NEEDLES


def download(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, arguments)
    if isinstance(result.exception, Exception):
        raise result.exception
    return result


def needle_files() -> dict[str, bytes | str]:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    entry = {"id": "one", "file": "one.png", "question": "Q?", "answer": "A"}
    return {"needles.json": json.dumps([entry]), "one.png": buffer.getvalue()}


def test_needles_are_fetched_and_checked(online: LoopbackHub) -> None:
    online.add_repo(DEFAULT_NEEDLES, needle_files())
    assert f"{DEFAULT_NEEDLES}: needles one in " in download("needles").output
    assert cached_snapshot(DEFAULT_NEEDLES, "dataset", allow_patterns=["needles.json", "one.png"])
    online.add_repo(DEFAULT_NEEDLES, {**needle_files(), "needles.json": "[]"})
    with pytest.raises(ValueError, match="is empty"):
        download("needles")


def test_a_newer_revision_is_found_and_the_cache_serves_without_a_hub(online: LoopbackHub) -> None:
    online.add_repo("org/set", {"a.json": "1"})
    first = download("datasets/org/set").stdout
    online.add_repo("org/set", {"a.json": "2"})
    second = download("datasets/org/set").stdout
    assert first != second
    online.stop()
    result = download("datasets/org/set")
    assert result.stdout == second and "The cache has org/set already" in result.stderr
    with pytest.raises(HubUnreachableError):
        download("datasets/org/other")


def test_model_comes_without_pickles_and_with_its_towers_configuration(online: LoopbackHub) -> None:
    config = json.dumps({"mm_vision_tower": "openai/clip"})
    files: dict[str, bytes | str] = {"config.json": config, "model.safetensors": b"1234", "old.bin": b"pickle"}
    online.add_repo("org/net", files, repo_type="model")
    tower: dict[str, bytes | str] = {"config.json": "{}", "preprocessor_config.json": "[]", "model.safetensors": b"12"}
    online.add_repo("openai/clip", tower, repo_type="model")
    output = download("org/net").output
    assert "org/net: model, 2 files" in output and "openai/clip: vision tower, 2 files" in output
    assert online.count("GET", "old.bin") == 0
    assert online.count("GET", "openai/clip/resolve") == 2


def test_bare_id_may_be_a_dataset(online: LoopbackHub) -> None:
    online.add_repo("org/set", {"a.json": "{}"})
    assert "org/set: dataset, 1 files" in download("org/set").output
    with pytest.raises(RepositoryMissingError, match="no model or dataset 'org/none'"):
        download("org/none")
    with pytest.raises(RepositoryMissingError, match="no model 'org/set'"):
        download("models/org/set")


def test_revision_and_cache_folder(online: LoopbackHub, tmp_path: Path) -> None:
    online.add_repo("org/set", {"a.json": "new"})
    online.add_repo("org/set", {"a.json": "old"}, revision="v0")
    result = download("datasets/org/set", "--revision", "v0", "--cache-dir", str(tmp_path / "other"))
    assert f"set HF_HUB_CACHE={tmp_path / 'other'}" in result.output
    folder = cached_snapshot("org/set", "dataset", "v0", cache_dir=tmp_path / "other")
    assert folder is not None and (folder / "a.json").read_text() == "old"
    assert cached_snapshot("org/set", "dataset", "v0") is None


def test_interrupted_download_goes_on(online: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "ATTEMPTS", 1)
    online.add_repo("org/net", {"model.safetensors": b"x" * 100_000, "config.json": "{}"}, repo_type="model")
    online.drop("model.safetensors", after=40_000)
    online.drop("model.safetensors", after=0)
    with pytest.raises(HubUnreachableError, match="what has arrived is kept"):
        download("models/org/net")
    download("models/org/net")
    assert "bytes=40000-" in {ranged for _, _, ranged in online.requests}


def test_tasks(online: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    online.add_repo(DEFAULT_NEEDLES, needle_files())
    assert "needles one" in download("vniah").output
    assert "nothing to fetch for vniah_nano" in download("vniah_nano").output
    monkeypatch.setenv("VNIAH_NEEDLES", "builtin")
    assert "nothing to fetch for vniah_generate" in download("vniah_generate").output
    with pytest.raises(ValueError, match="--revision names a revision of one repository"):
        download("vniah", "--revision", "v1")


def test_group_fetches_what_it_can_and_then_fails(online: LoopbackHub) -> None:
    online.add_repo(DEFAULT_NEEDLES, needle_files())
    with pytest.raises(OSError, match="1 of 2 data sets of longva_paper_needles"):
        download("longva_paper_needles")
    assert cached_snapshot(DEFAULT_NEEDLES, "dataset", allow_patterns=["needles.json", "one.png"])


def test_videos_and_annotations_of_a_benchmark(online: LoopbackHub) -> None:
    from vniah.tasks.videomme.data import SOURCE

    files = {"videomme/test-00000-of-00001.parquet": b"p", "videos_1.zip": b"z", "else.bin": b"b"}
    online.add_repo(SOURCE.hub_id, files)
    assert f"{SOURCE.hub_id}: dataset, 2 files" in download("videomme_longva").output


def test_unknown_name_lists_what_there_is(online: LoopbackHub) -> None:
    with pytest.raises(ValueError, match=r"nothing named 'nonsense'.*'needles'.*videomme_longva"):
        download("nonsense")
    assert not online.requests


def test_index_of_our_tasks() -> None:
    from vniah.lmms_plugin import tasks_dir

    index = read_index(tasks_dir())
    assert {"vniah", "vniah_generate", "vniah_nano", "text_niah", "videomme_longva", "mlvu_longva"} <= set(index)
    members = expand("longva_paper", index)
    assert {"vniah", "text_niah_0", "videomme_longva", "mlvu_longva_dev_choice", "ai2d"} <= set(members)
    assert not any(index.get(name) for name in members), "groups are opened"
    assert expand("vniah", index) == ("vniah",)


def test_index_survives_groups_that_hold_themselves_and_names_bad_files(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("group: a\ntask: [b, a, {task: c, x: !function m.f}]\n")
    (tmp_path / "b.yaml").write_text("task: b\ndoc_to_text: !function m.f\n")
    assert expand("a", read_index(tmp_path)) == ("b", "c")
    (tmp_path / "bad.yaml").write_text("task: [")
    with pytest.raises(ValueError, match=re.escape("bad.yaml is not readable as YAML")):
        read_index(tmp_path)
