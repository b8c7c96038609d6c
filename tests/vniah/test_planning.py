"""The plan: the design's figures for the paper's grid, and its errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vniah.cli import app
from vniah.flops import SHAPES
from vniah.gpus import get_gpu
from vniah.grid import Grid
from vniah.planning import grid_requests, make_plan, shape_of

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


def test_the_command_prints_the_ratio_and_refuses_what_it_does_not_know() -> None:
    result = CliRunner().invoke(app, ["plan", "--frames", "200-3000:200"])
    assert result.exit_code == 0 and "2.34x fewer" in result.output
    result = CliRunner().invoke(app, ["plan", "--text", "32K-64K:32K", "--samples", "2"])
    assert result.exit_code == 0 and "text NIAH" in result.output
    with pytest.raises(ValueError, match="LongVA-7B, "):
        shape_of("LongVA-8B")
    with pytest.raises(ValueError, match="A100-80GB"):
        get_gpu("A100")
