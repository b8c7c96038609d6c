"""Recipes and ``vniah train``: what is read, what is refused and how the errors help."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from vniah.training import runner
from vniah.training.recipe import load_recipe, shipped_recipes
from vniah.training.runner import check_recipe, describe
from vniah.training.stages import AlignStage, DpoStage, EvaluateStage, TextStage

SMALL: dict[str, Any] = {
    "name": "small",
    "stages": [
        {
            "name": "text",
            "kind": "text",
            "new": {},
            "data": {"phases": [{"start": 0, "length": 32, "batch": 2}]},
            "train": {"lr": "1e-3", "steps": 2, "precision": "fp32"},
        }
    ],
}


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_load(name: str) -> None:
    told = describe(load_recipe(name))
    assert told.startswith(name) and ": 1 stages" not in told


def test_all_the_papers_recipes_ship() -> None:
    wanted = {"nano", "text_extension_224k", "align_stage1", "align_stage2", "dpo"}
    assert wanted <= set(shipped_recipes())


def test_the_papers_values() -> None:
    stage = load_recipe("text_extension_224k").stage("Qwen2-7B-Instruct-224K")
    assert isinstance(stage, TextStage)
    train = stage.train
    assert (stage.rope_theta, stage.sequence_length, train.steps, train.accumulation) == (1e9, 224_000, 1000, 4)
    assert (train.lr, train.betas, train.weight_decay, train.schedule) == (1e-5, (0.9, 0.95), 0.1, "constant")
    assert (train.warmup, train.eps, train.precision, train.attention) == (0, 1e-8, "bf16", "ring")
    stage1 = load_recipe("align_stage1").stages[0]
    assert isinstance(stage1, AlignStage) and stage1.parts == ("projector",) and stage1.data.max_length == 8192
    for stage, lr in ((stage1, 1e-3), (load_recipe("align_stage2").stages[0], 1e-5)):
        assert isinstance(stage, AlignStage)
        assert (stage.train.lr, stage.train.schedule, stage.train.warmup) == (lr, "cosine", 0.03)
        assert (stage.train.epochs, stage.train.weight_decay) == (1, 0)
    assert isinstance(stage, AlignStage) and set(stage.parts) == {"tower", "projector", "decoder"}
    assert (stage.train.tower_lr, stage.data.max_length, stage.data.group_by_length) == (2e-6, 32_768, True)
    dpo = load_recipe("dpo").stages[0]
    assert isinstance(dpo, DpoStage) and (dpo.beta, dpo.num_frames, dpo.max_length) == (0.1, 10, 32_768)
    train = dpo.train
    assert (train.lr, train.epochs, train.accumulation, train.schedule, train.warmup) == (5e-7, 3, 16, "linear", 0.1)


def test_anyres_is_stage_2_in_all_else() -> None:
    """Figure 4 (ii): all other factors unchanged."""
    unires, anyres = (load_recipe("align_stage2", more).stages[0] for more in ([], ["LongVA-7B.data.merge=anyres"]))
    assert isinstance(unires, AlignStage) and isinstance(anyres, AlignStage)
    assert dataclasses.replace(unires.data, merge="anyres") == anyres.data
    assert dataclasses.replace(unires, name=anyres.name, data=anyres.data) == anyres


def test_the_chain_is_wired() -> None:
    """What a recipe reads is what the recipe before it writes, letter by letter."""
    extension, stage1 = load_recipe("text_extension_224k"), load_recipe("align_stage1")
    stage2, dpo = load_recipe("align_stage2"), load_recipe("dpo")
    for before, after in ((extension, stage1), (stage1, stage2), (stage2, dpo)):
        assert str(before.folder / before.stages[-1].name / "model") == after.stages[0].model_from


def test_scientific_notation_without_a_point_is_a_number(recipe_file: Path) -> None:
    stage = load_recipe(recipe_file).stages[0]
    assert stage.train.lr == 1e-3


def test_overrides_reach_recipe_and_stage(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["seed=7", "text.train.lr=2e-4", "text.data.repeat_share=0.1"])
    stage = recipe.stages[0]
    assert isinstance(stage, TextStage)
    assert (recipe.seed, stage.train.lr, stage.data.repeat_share) == (7, 2e-4, 0.1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sead=3", "'seed'"),
        ("text.train.learning=1", "no key 'learning'"),
        ("text.train.warmpu=1", "'warmup'"),
        ("tekst.train.lr=1", "'text'"),
        ("text.train.steps=many", "expected int, got 'many'"),
        ("text.train.steps=true", "expected int"),
        ("text.train.precision=bf8", "did you mean 'bf16'"),
        ("text.train.betas=[0.9]", "expected 2 values"),
        ("text.train.steps=0", "give steps or epochs"),
        ("text.kind=txt", "did you mean 'text'"),
        ("seed", "key=value"),
        ("text=3", "name a key of the stage"),
        ("text.train.betas=[1", "cannot read the value"),
        ("text.train.lr=.nan", "expected float, got nan"),
        ("text.train=3", "expected keys and values, got 3"),
        ("text.train.batch_size=2", "phases say their own batch sizes"),
        ("text.train.attention=ring text.train.batch_size=2", "shares one sequence among ranks"),
        ("parallel=0", "parallel must be at least 1"),
        ("name=../x", "'../x' names a folder"),
    ],
)
def test_a_wrong_override_names_what_is_near(recipe_file: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        load_recipe(recipe_file, override.split(" "))


def test_a_stage_cannot_read_a_later_one(tmp_path: Path) -> None:
    path = tmp_path / "loop.yaml"
    path.write_text(
        yaml.safe_dump({"name": "loop", "stages": [{**SMALL["stages"][0], "new": None, "model_from": "text"}]})
    )
    with pytest.raises(ValueError, match="does not come before it"):
        load_recipe(path)


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(FileNotFoundError, match="did you mean 'nano'"):
        load_recipe("nanno")


def test_a_key_that_is_written_twice(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text(yaml.safe_dump(SMALL) + "seed: 1\nseed: 2\n")
    with pytest.raises(ValueError, match="'seed' is given twice"):
        load_recipe(path)


def test_not_yaml(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: [1")
    with pytest.raises(ValueError, match="not YAML"):
        load_recipe(path)


def test_a_length_the_ranks_cannot_share_is_refused_before_the_first_step() -> None:
    recipe = load_recipe("text_extension_224k", ["Qwen2-7B-Instruct-224K.sequence_length=224001"])
    with pytest.raises(ValueError, match="multiple of 16, such as 224000"):
        check_recipe(recipe, ranks=8)
    check_recipe(load_recipe("text_extension_224k"), ranks=8)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["shards.total_tokens=800_000_000"],
            "1000 steps on 8 ranks take 4000 sequences, but 'shards' prepares about 3572",
        ),
        (["shards.sequence_length=112000"], "reads sequences of 224000 tokens, but 'shards' packs 112000"),
        (["Qwen2-7B-Instruct-224K.train.attention=sdpa"], "take 32000 sequences"),
    ],
)
def test_tokens_that_a_recipe_cannot_give_itself(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_recipe(load_recipe("text_extension_224k", overrides), ranks=8)


def test_a_corpus_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError, match="'/no/corpus'"):
        check_recipe(load_recipe("text_extension_224k", ["shards.source=/no/corpus"]))


def test_one_stage_alone_needs_its_own_inputs_only(tmp_path: Path) -> None:
    first = {**SMALL["stages"][0], "name": "first"}
    second = {**first, "name": "second", "new": None, "model_from": "/not/there"}
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump({"name": "two", "output": str(tmp_path), "stages": [first, second]}))
    check_recipe(load_recipe(path), only="first")
    with pytest.raises(FileNotFoundError, match="'/not/there'"):
        check_recipe(load_recipe(path))


def test_missing_inputs_are_named_before_the_first_step() -> None:
    with pytest.raises(FileNotFoundError, match="runs/longva/Qwen2-7B-Instruct-224K/model"):
        check_recipe(load_recipe("align_stage1"))


# ``vniah train`` at the command line, and the runner behind it.


RECIPE = {
    "name": "two",
    "stages": [
        {
            "name": "text",
            "kind": "text",
            "new": {},
            "sequence_length": 64,
            "rope_theta": 1e4,
            "data": {"phases": [{"start": 0, "length": 32, "batch": 2}]},
            "train": {"lr": 1e-3, "steps": 2, "precision": "fp32", "log_every": 1},
        },
        {
            "name": "longer",
            "kind": "text",
            "model_from": "text",
            "sequence_length": 128,
            "max_positions": 128,
            "rope_theta": 1e6,
            "data": {"phases": [{"start": 0, "length": 128, "batch": 1}]},
            "train": {"lr": 1e-3, "steps": 2, "precision": "fp32", "log_every": 1},
        },
    ],
}


@pytest.fixture
def two_stages(tmp_path: Path) -> Path:
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "output": str(tmp_path / "out")}))
    return path


def invoke(*arguments: str) -> Any:
    from vniah.cli import app

    return CliRunner().invoke(app, ["train", *arguments])


def test_dry_run_says_what_would_run_and_writes_nothing(two_stages: Path, tmp_path: Path) -> None:
    result = invoke(str(two_stages), "text.train.steps=5", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "longer (text) reads text" in result.output and "5 steps" in result.output
    assert not (tmp_path / "out").exists()


def test_plan(two_stages: Path) -> None:
    result = invoke(str(two_stages), "--plan", "--gpus", "1", "--gpu-memory", "24")
    assert result.exit_code == 0 and "longest" in result.output and "longer" in result.output


def test_a_wrong_key_is_a_value_error_for_main_to_print(two_stages: Path) -> None:
    result = invoke(str(two_stages), "text.train.stpes=5")
    assert isinstance(result.exception, ValueError) and "'steps'" in str(result.exception)


def test_stages_run_in_order_and_what_is_done_is_not_done_again(two_stages: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig

    said: list[str] = []
    recipe = load_recipe(two_stages)
    runner.run_recipe(recipe, say=said.append)
    out = tmp_path / "out"
    config = AutoConfig.from_pretrained(out / "longer" / "model")
    assert config.rope_parameters["rope_theta"] == 1e6 and config.max_position_embeddings == 128
    assert (out / "longer" / "model" / "tokenizer.json").is_file()
    assert json.loads((out / "text" / "done.json").read_text())["steps"] == 2
    said.clear()
    runner.run_recipe(recipe, say=said.append)
    assert said == ["text: done before", "longer: done before"]
    with pytest.raises(ValueError, match=r"another recipe \(differs in seed\)"):
        runner.run_recipe(load_recipe(two_stages, ["seed=9"]))


def test_a_stage_whose_input_was_not_written(two_stages: Path) -> None:
    recipe = load_recipe(two_stages)
    with pytest.raises(FileNotFoundError, match="stage 'text' has written no"):
        runner.run_stage(recipe, recipe.stage("longer"))


def test_evaluation_below_its_bar_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from vniah.training import evaluate

    cells = [{"num_frames": 4, "depth_percent": depth, "needle": "n", "correct": depth == 0} for depth in (0, 50, None)]
    assert evaluate.summary(cells) == {"accuracy": 0.5, "control": 0.0, "by_frames": {"4": 0.5}}
    stage = EvaluateStage(name="e", model_from="m", require_accuracy=0.9)
    monkeypatch.setattr(evaluate, "score_by_tree", lambda *a, **k: cells)
    with pytest.raises(ValueError, match=r"accuracy 0\.500 is below the 0\.9"):
        evaluate.run(stage, tmp_path, seed=0, resolve=str)
    report = json.loads((tmp_path / "vniah.json").read_text())
    assert report["accuracy_by_rope_theta"] == {"own": 0.5} and report["cells"] == cells


def test_the_best_of_several_rope_bases_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from vniah.training import evaluate

    def scored(*_: Any, rope_theta: float, **__: Any) -> list[dict[str, Any]]:
        return [{"num_frames": 4, "depth_percent": 0, "needle": "n", "correct": rope_theta == 1e6}]

    monkeypatch.setattr(evaluate, "score_by_tree", scored)
    stage = EvaluateStage(name="e", model_from="m", rope_thetas=(1e4, 1e6, 1e7))
    assert evaluate.run(stage, tmp_path, seed=0, resolve=str)["accuracy"] == 1.0
    report = json.loads((tmp_path / "vniah.json").read_text())
    assert report["accuracy_by_rope_theta"] == {"10000": 0.0, "1e+06": 1.0, "1e+07": 0.0}


def test_a_stage_has_the_threads_that_it_names() -> None:
    import torch

    before = torch.get_num_threads()
    with runner._threads(before + 1):
        assert torch.get_num_threads() == before + 1
    with runner._threads(0):
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before
