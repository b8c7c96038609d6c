"""The plan: the design's figures for the paper's grid, and its errors."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vniah.cli import app
from vniah.flops import SHAPES
from vniah.gpus import get_gpu
from vniah.grid import Grid
from vniah.planning import checkpoint_tokens, grid_requests, make_plan, shape_of

NEEDLES = [(f"n{number}", "What is it?" * 10, "Panda") for number in range(5)]


def test_the_papers_grid() -> None:
    cells, controls = grid_requests(Grid.parse("200-3000:200", "0-100:20"), NEEDLES)
    plan = make_plan(cells, controls, SHAPES["LongVA-7B"])
    assert (plan.cells, plan.controls) == (450, 75)
    assert round(plan.plain_flops / plan.tree_flops, 2) == 2.34
    assert 432_000 < plan.longest_tokens < 432_500
    assert round(plan.kv_bytes / 1e9, 1) == 24.8
    assert plan.peak_bytes < 48e9
    assert plan.seconds(get_gpu("A100-80GB"), 312 * 10**12) == pytest.approx(2.0)


def test_a_shape_is_read_from_either_layout(tmp_path: Path) -> None:
    text = {
        "num_hidden_layers": 2,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_attention_heads": 4,
        "vocab_size": 9,
    }
    for config in (text, {"text_config": text, "vision_config": {"image_size": 32, "patch_size": 8}}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        shape = shape_of(str(tmp_path))
        assert (shape.layers, shape.kv_heads, shape.head_dim) == (2, 4, 2)
    assert shape.tokens_per_frame == 4


def test_the_tower_is_that_beside_the_checkpoint(tmp_path: Path) -> None:
    text = {
        "num_hidden_layers": 2,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_attention_heads": 4,
        "vocab_size": 9,
    }
    released = {**text, "mm_vision_tower": "openai/tower", "tie_word_embeddings": True}
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps(released))
    assert shape_of(str(tmp_path / "model")).tokens_per_frame == 144
    (tmp_path / "openai/tower").mkdir(parents=True)
    (tmp_path / "openai/tower/config.json").write_text(json.dumps({"image_size": 28, "patch_size": 7}))
    shape = shape_of(str(tmp_path / "model"))
    assert shape.tokens_per_frame == 4
    cells, controls = grid_requests(Grid.parse("4", "50"), NEEDLES)
    assert make_plan(cells, controls, shape).weight_bytes == 2 * (shape.decoder_params + 9 * 8)


def test_the_shipped_models_shape_is_the_one_that_is_known() -> None:
    from longva_model.engine.loading import nano_folder

    assert shape_of(str(nano_folder())) == SHAPES["nano"]


def test_configs_of_other_things_are_named(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    for text, said in (("{", "is not JSON"), ("[]", "holds no object"), ('{"num_attention_heads": 2}', "no language")):
        config.write_text(text)
        with pytest.raises(ValueError, match=f"config.json .*{said}"):
            shape_of(str(tmp_path))


def test_text_is_counted_by_the_checkpoints_tokenizer(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(shared / "parity" / "LongVA-tiny-unires")
    encode = checkpoint_tokens(folder)
    assert encode is not None and encode("<|im_end|>") == [600] and checkpoint_tokens("LongVA-7B") is None
    # What is not given is read as a run reads it.
    monkeypatch.setenv("VNIAH_FRAMES", "3,8")
    monkeypatch.setenv("VNIAH_DEPTHS", "0-100:30")
    output = CliRunner().invoke(app, ["plan", "--model", folder, "--needles", "2"]).output
    assert "3,8 frames, depths 0-100:30 %" in output and f"by the tokenizer in {folder}" in output
    monkeypatch.setenv("TEXT_NIAH_SAMPLES", "3")
    output = CliRunner().invoke(app, ["plan", "--model", folder, "--text", "1K,2K"]).output
    assert "depths 0-100:10 %" in output and "66 (2)" in output
    # Prompts are a sentence shorter at most, and longer by template and needle.
    found = re.search(r"longest prompt\s+([\d,]+) tokens", output)
    assert found is not None and 2000 < int(found[1].replace(",", "")) < 2200


def test_the_command_prints_the_ratio_and_refuses_what_it_does_not_know() -> None:
    result = CliRunner().invoke(app, ["plan", "--frames", "200-3000:200"])
    assert result.exit_code == 0 and "2.34x fewer" in result.output
    result = CliRunner().invoke(app, ["plan", "--text", "32K-64K:32K", "--samples", "2"])
    assert result.exit_code == 0 and "text NIAH" in result.output
    with pytest.raises(ValueError, match="LongVA-7B, "):
        shape_of("LongVA-8B")
    with pytest.raises(ValueError, match="A100-80GB"):
        get_gpu("A100")
