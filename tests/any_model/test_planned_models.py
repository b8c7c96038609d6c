"""``vniah plan`` of any video-language model: by config and processor, exact in weights, tokens and steps."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from any_model.published_sizes import qwen2_5_vl_7b, qwen3_vl_8b
from command_line import output_of
from typer.testing import CliRunner

from longva_model.arguments import ModelArgs
from longva_model.backends.planning import Planner, needle_cells, task_cells
from longva_model.run.needle_model import NeedleModel
from vniah.cli import app
from vniah.needles import open_needles
from vniah.runs.grid import Grid
from vniah.visual.kinds import read_settings
from vniah.visual.settings import Settings
from vniah.visual.task import VisualTask

NEEDLES = [(f"n{number}", f"What is the animal? ({number})", "A panda") for number in range(2)]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders without weights."""
    made = {}
    for write in (qwen2_5_vl_7b, qwen3_vl_8b):
        made[write.__name__] = tmp_path_factory.mktemp(write.__name__)
        write(made[write.__name__])
    return made


@pytest.fixture(scope="module")
def qwen2_5_vl(published: dict[str, Path]) -> Planner:
    return Planner(str(published["qwen2_5_vl_7b"]))


def test_weights_and_cache_are_those_of_the_published_models(published: dict[str, Path], qwen2_5_vl: Planner) -> None:
    qwen2 = qwen2_5_vl.shape
    assert qwen2.weights == 8_292_166_656 and qwen2.kv_bytes_per_token == 2 * 28 * 4 * 128 * 2
    assert qwen2.state_bytes == 0 and qwen2.layers == 28
    layer = 3584 * 128 * (2 * 28 + 2 * 4) + 3 * 3584 * 18944
    assert 28 * layer < qwen2.decoder_params < 28 * layer * 1.001
    qwen3 = Planner(str(published["qwen3_vl_8b"])).shape
    assert qwen3.weights == 8_767_123_696 and qwen3.kv_bytes_per_token == 2 * 36 * 8 * 128 * 2


def test_the_papers_longest_prompt(qwen2_5_vl: Planner) -> None:
    """3,001 frames of 644x364 are 1,501 pairs of 13x23 tokens."""
    planner = qwen2_5_vl
    plan = planner.choice("auto", needle_cells(Grid.parse("3000", "0,100"), NEEDLES), (360, 640))
    (column,) = plan.columns
    assert (column.fitted, column.tokens_a_unit, column.frames_a_unit) == ((644, 364), 299, 2)
    text = column.prompt_tokens - 1501 * 299
    assert 0 < text < 100
    assert (plan.costs.cells, plan.costs.controls) == (4, 2)
    assert plan.costs.longest_tokens == column.prompt_tokens + len(planner.processor.tokenizer("A panda")["input_ids"])
    assert plan.costs.kv_bytes == plan.costs.longest_tokens * 57344
    # By hand: behind a needle at depth 0 nothing is shared; at 100 it stands behind the pairs of the controls.
    trunk = 1500 * 299
    assert 3 * trunk < plan.costs.tree_tokens < 3 * trunk + 6 * (299 + text + 10)


@pytest.mark.slow
def test_free_and_held_columns(published: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(published["qwen3_vl_8b"])
    monkeypatch.delenv("VNIAH_HAYSTACK", raising=False)
    grid = ("--frames", "200,3000", "--depths", "50", "--needles", "1")
    output = output_of("plan", "--model", folder, *grid)
    free, held = output.split("frame_tokens=column")
    assert "frames of 640x360 (assumed" in free and "shrunk with their number" in free
    lines = [line.split() for line in output.splitlines()]
    columns = [line[:5] for line in lines if line and line[0] in ("200", "3,000") and len(line) == 6]
    assert columns == [
        ["200", "448x256", "112", "2", "56"],
        ["3,000", "96x64", "6", "2", "3"],
        ["200", "96x64", "6", "2", "3"],
        ["3,000", "96x64", "6", "2", "3"],
    ]
    assert "held at the size of the longest column" in held and "8,767,123,696" in held
    short = ("--frames", "20", *grid[2:])
    once = output_of("plan", "--model", folder, *short, "--frame-size", "64x32")
    assert "frame_tokens=column" not in once and "auto and column are the same" in once
    monkeypatch.setenv("VNIAH_HAYSTACK", "synthetic:0:3000:96x64")
    assert "frames of 96x64 (of synthetic:0" in output_of("plan", "--model", folder, *short)
    with pytest.raises(ValueError, match="--frame-size '640' is no size"):
        output_of("plan", "--model", folder, *short, "--frame-size", "640")


@pytest.mark.parametrize("family", [pytest.param("qwen3_vl", marks=pytest.mark.slow), "qwen3_5"])
def test_tokens_of_the_tree_are_those_that_a_run_feeds(
    family: str, folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = folder_of(family)
    monkeypatch.setenv("VNIAH_CACHE", str(tmp_path / "cache"))
    given = {"frames": "2,9", "depths": "0,50,100", "haystack": "synthetic:0:9:64x48", "needles": "icons:0:2"}
    task = VisualTask("vniah", "teacher-forced", Settings.read(given=given))
    model = NeedleModel(ModelArgs(pretrained=str(folder), journal="none"))
    cells = [(task.name, number) for number in range(len(task.rows))]
    model.answers({task.name: task}, cells[:1])
    runner = model._runner
    assert runner is not None
    fed: list[int] = []

    def look(_module: Any, _args: Any, given: dict[str, Any]) -> None:
        fed.append(given["inputs_embeds"].shape[1])

    runner.backend.decoder.register_forward_pre_hook(look, with_kwargs=True)
    answers = model.answers({task.name: task}, cells)
    needles = [(needle.id, needle.question, needle.answer) for needle in open_needles(task.settings.needles)]
    planner = Planner(str(folder))
    plan = planner.choice("auto", needle_cells(task.settings.grid, needles), (48, 64))
    assert plan.costs.tree_tokens == sum(fed)
    assert plan.costs.longest_tokens == max(one.prompt_tokens + len(one.answer_ids) for one in answers)
    config = runner.backend.decoder.config
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    rows = sum(kind == "full_attention" for kind in kinds)
    assert planner.shape.row_bytes == rows * 2 * config.num_key_value_heads * config.head_dim * 2
    assert (planner.shape.state_bytes > 0) == (rows < len(kinds)) and planner.shape.layers == rows


def test_planned_tasks_are_what_a_run_feeds_and_a_tree_of_them_what_plain_forwards_give(
    folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Look-alikes, counts and blended pictures, each over two films (``VNIAH_SEEDS=2``) that share no prefix."""
    monkeypatch.setenv("VNIAH_CACHE", str(tmp_path / "cache"))
    folder = str(folder_of("qwen2_5_vl"))
    grid = {"frames": "9", "depths": "0,100", "haystack": "synthetic:0:9:64x48", "seeds": "2", "samples": "1"}
    of_kind: dict[str, dict[str, Any]] = {
        "lookalikes": {"needles": "icons:0:2", "distance": 3, "distractors": 2},
        "vruler_count": {"distractors": 2},
        "vruler_keys": {"salience": "blend:0.5"},
    }
    tasks = {
        kind: VisualTask(kind, "teacher-forced", read_settings({"kind": kind, **grid, **more}))
        for kind, more in of_kind.items()
    }
    cells = [(kind, number) for kind, task in tasks.items() for number in range(len(task.rows))]
    shown = [len(tasks["lookalikes"].rows[number]["distractor_indices"]) for _, number in cells[:12]]
    assert sorted(set(shown)) == [0, 2], "controls and look-alikes"
    model = NeedleModel(ModelArgs(pretrained=folder, journal="none", device="cpu"))
    model.answers(tasks, cells[:1])
    assert model.about()["model"] == "hf_tree" and model._runner is not None
    fed: list[int] = []

    def look(_module: Any, _args: Any, given: dict[str, Any]) -> None:
        fed.append(given["inputs_embeds"].shape[1])

    hook = model._runner.backend.decoder.register_forward_pre_hook(look, with_kwargs=True)
    trees = model.answers(tasks, cells)
    hook.remove()
    planner = Planner(folder)
    size = (48, 64)
    plan = planner.choice("auto", task_cells(list(tasks.values())), size)
    assert plan.costs.tree_tokens == sum(fed) < plan.costs.every_token
    one_film = [replace(cell, film="one") for cell in task_cells(list(tasks.values()))]
    assert planner.choice("auto", one_film, size).costs.tree_tokens < sum(fed), "films share nothing"
    plains = NeedleModel(ModelArgs(pretrained=folder, journal="none", device="cpu", scoring="plain"))
    for tree, plain in zip(trees, plains.answers(tasks, cells), strict=True):
        assert tree.predicted_ids == plain.predicted_ids and tree.prompt_tokens == plain.prompt_tokens
        assert tree.answer_logprobs == pytest.approx(plain.answer_logprobs, abs=2e-4)


@pytest.mark.parametrize("family", ["gemma4", "gemma3", "qwen3_vl_moe", "internvl"])
def test_other_families_are_planned(family: str, folder_of: Callable[[str], Path]) -> None:
    """Windows keep all rows, layers that share keep none, and of experts those that are chosen count."""
    planner = Planner(str(folder_of(family)))
    shape, config = planner.shape, planner.config.get_text_config()
    plan = planner.choice("auto", needle_cells(Grid.parse("2,5", "0,100"), NEEDLES), (48, 64))
    assert plan.costs.tree_tokens < plan.costs.prompt_tokens and plan.costs.tree_flops < plan.costs.plain_flops
    # Blocks are of rows that all later tokens see.
    assert ("sliding_attention" in planner.no_blocks) == family.startswith("gemma")
    assert bool(planner.no_blocks) == family.startswith("gemma")
    rows = config.num_hidden_layers - (getattr(config, "num_kv_shared_layers", None) or 0)
    if family != "gemma4":  # whose layers have heads of two sizes
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        assert shape.row_bytes == rows * 2 * config.num_key_value_heads * head * 2
    if family == "qwen3_vl_moe":
        import torch

        decoder = planner._decoder
        experts = sum(one.numel() for name, one in decoder.named_parameters() if "experts" in name)
        tables = sum(m.weight.numel() for m in decoder.modules() if isinstance(m, torch.nn.Embedding))
        whole = sum(one.numel() for one in decoder.parameters()) - tables
        share = config.num_experts_per_tok / config.num_experts
        assert share < 1 and shape.decoder_params == whole - round(experts * (1 - share))


def test_what_a_run_would_refuse_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "paligemma", "vision_config": {}}))
    asked = ["plan", "--model", str(tmp_path), "--frames", "4", "--depths", "50", "--needles", "1"]
    result = CliRunner().invoke(app, asked)
    # What is done meanwhile is said first: transformers is imported in seconds.
    assert result.stderr == f"vniah: reading the config and processor of {tmp_path}; no weights\n"
    assert re.search(r"paligemma\) is refused: a prompt sees itself both ways", str(result.exception))
