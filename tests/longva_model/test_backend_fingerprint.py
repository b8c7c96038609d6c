"""Fingerprints of a loaded model: whatever changes a score changes them, so that no stale result is taken for one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import write_longva

from longva_model.backends.loading import load_backend
from longva_model.checkpoints.convert import convert
from longva_model.lmms.arguments import ModelArgs


def fingerprints(folder: Path) -> tuple[str, str]:
    backend = load_backend(ModelArgs.read({"pretrained": str(folder), "dtype": "float32", "device": "cpu"}))
    return backend.fingerprint, backend.frames_fingerprint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_longva(tmp_path_factory.mktemp("model"))


def in_config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))

    return edit


def other_words(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    path.write_text(json.dumps(tokenizer))


@pytest.mark.parametrize(
    ("edit", "scores", "frames"),
    [
        (in_config(lambda config: config.update(vision_feature_layer=-1)), True, True),
        (in_config(lambda config: config["vision_config"].update(hidden_act="gelu")), True, True),
        (in_config(lambda config: config.update(projector_hidden_act="relu")), True, True),
        (in_config(lambda config: config["text_config"].update(rms_norm_eps=1e-5)), True, False),
        (in_config(lambda config: config["text_config"].update(use_cache=False)), False, False),
        (other_words, True, False),
    ],
)
def test_settings_beside_the_weights_tell_models_apart(
    folder: Path, tmp_path: Path, edit: Callable[[Path], None], scores: bool, frames: bool
) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = fingerprints(tmp_path)
    assert before == fingerprints(folder)
    edit(tmp_path)
    after = fingerprints(tmp_path)
    assert (after[0] != before[0], after[1] != before[1]) == (scores, frames)


def test_frames_of_one_layout_serve_the_other(shared: Path, tmp_path: Path) -> None:
    released = shared / "parity" / "LongVA-tiny-anyres"
    convert(released, tmp_path / "ours")
    assert fingerprints(tmp_path / "ours")[1] == fingerprints(released)[1]
