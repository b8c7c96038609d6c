"""Two runs with one seed are identical; a run killed in the middle ends where an uninterrupted one does."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_models import tiny_qwen2

from vniah.notices import recorded
from vniah.training import fit as fit_module
from vniah.training.checkpoints import check_identity, last_checkpoint
from vniah.training.fit import fit, logged_events, parameter_groups, run_callback
from vniah.training.stages import TowerStage, Train

STEPS = 8
TRAIN = Train(
    lr=1e-2, steps=STEPS, schedule="cosine", warmup=2, precision="fp32", log_every=1, save_every=2, accumulation=2
)

STAGE = TowerStage(name="tiny", train=TRAIN)  # a stage whose batches are whole


class Batches:
    """Item i is a batch that depends on i alone; dies at item ``dies_at``."""

    def __init__(self, dies_at: int = -1) -> None:
        self.dies_at = dies_at

    def __len__(self) -> int:
        return STEPS * 2

    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        if item == self.dies_at:
            raise KeyboardInterrupt
        rng = np.random.default_rng(item)
        ids = torch.from_numpy(rng.integers(0, 20, (2, 9)))
        return {"input_ids": ids, "labels": ids}


def tiny() -> Any:
    from vniah.training.losses import install_loss

    return install_loss(tiny_qwen2())


def train(folder: Path, dies_at: int = -1) -> tuple[list[Any], dict[str, torch.Tensor]]:
    model = tiny()
    fit(model, Batches(dies_at), STAGE, folder, seed=1, steps=STEPS)
    return curve(folder), model.state_dict()


@pytest.fixture(scope="module")
def killed_runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The folder of a run that died at a batch, made once."""

    @functools.cache
    def run(at: int) -> Path:
        folder = tmp_path_factory.mktemp("killed")
        with pytest.raises(KeyboardInterrupt):
            train(folder, dies_at=at)
        return folder

    return run


@pytest.fixture
def killed(killed_runs: Callable[[int], Path], tmp_path: Path) -> Callable[..., None]:
    """Leaves in this test's folder what a run that died at batch ``at`` left."""
    return lambda at: shutil.copytree(killed_runs(at), tmp_path, dirs_exist_ok=True)


def assert_same(run: Any, whole: Any) -> None:
    """The same curve and weights, to the bit."""
    assert run[0] == whole[0]
    for name, value in whole[1].items():
        assert torch.equal(run[1][name], value)


def curve(folder: Path) -> list[Any]:
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(event["step"], event["loss"], event["learning_rate"]) for event in events]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], dict[str, torch.Tensor]]:
    return train(tmp_path_factory.mktemp("whole"))


def test_one_seed_one_curve(whole: Any, tmp_path: Path) -> None:
    again = train(tmp_path)
    assert_same(again, whole)
    assert len(again[0]) == STEPS


def test_killed_and_resumed_ends_where_the_whole_run_does(whole: Any, killed: Any, tmp_path: Path) -> None:
    killed(at=11)
    assert 4 <= len(curve(tmp_path)) < STEPS
    assert_same(train(tmp_path), whole)


def test_a_checkpoint_that_was_cut_off_is_not_taken(whole: Any, killed: Any, tmp_path: Path) -> None:
    """Killed while a checkpoint was written: the one before it is the last."""
    killed(at=11)
    assert (tmp_path / "checkpoint-4" / "trainer_state.json").is_file()
    for name, text in (("checkpoint-6", None), ("checkpoint-8", '{"global_st')):
        (tmp_path / name).mkdir()
        if text:
            (tmp_path / name / "trainer_state.json").write_text(text)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")
    assert train(tmp_path)[0] == whole[0]


def damage(path: Path, kind: str) -> None:
    data = bytearray(path.read_bytes())
    if kind == "zeroed":
        data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    elif kind == "one bit":
        data[len(data) // 2] ^= 1
    elif kind == "cut":
        del data[-100:]
    path.write_bytes(data) if kind != "gone" else path.unlink()


@pytest.mark.parametrize("kind", ["zeroed", "one bit", "cut", "gone"])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_taken(
    killed: Any, tmp_path: Path, name: str, kind: str
) -> None:
    killed(at=13)
    newest, before = tmp_path / "checkpoint-6", tmp_path / "checkpoint-4"
    assert (newest / "hashes.json").is_file() and (before / "hashes.json").is_file()
    damage(newest / name, kind)
    assert last_checkpoint(tmp_path) == str(before)
    (told,) = recorded()
    assert f"{newest} is damaged ({name} " in told and "kept as damaged-checkpoint-6" in told
    assert told.endswith("training goes on from checkpoint-4")
    assert not newest.exists() and (tmp_path / "damaged-checkpoint-6").is_dir()


def test_a_run_whose_newest_checkpoint_is_damaged_ends_where_the_whole_run_does(
    whole: Any, killed: Any, tmp_path: Path
) -> None:
    killed(at=13)
    damage(tmp_path / "checkpoint-6" / "model.safetensors", "zeroed")
    assert_same(train(tmp_path), whole)


def test_without_any_sound_checkpoint_training_starts_over_and_says_so(whole: Any, killed: Any, tmp_path: Path) -> None:
    killed(at=13)
    for path in tmp_path.glob("checkpoint-*"):
        damage(path / "model.safetensors", "one bit")
    assert train(tmp_path)[0] == whole[0]
    assert any("training starts over" in line for line in recorded())


def test_a_stop_says_what_goes_on(killed: Any, tmp_path: Path) -> None:
    from vniah.training.recipe import load_recipe
    from vniah.training.runner import what_goes_on

    recipe = load_recipe("nano", [f"output={tmp_path / 'out'}"])
    assert what_goes_on(recipe) == ""
    killed(at=13)
    (tmp_path / "out" / "tower").mkdir(parents=True)
    shutil.copytree(tmp_path, tmp_path / "out" / "text" / "run", ignore=shutil.ignore_patterns("out"))
    assert what_goes_on(recipe) == "with the same command text goes on from checkpoint-6 and tower starts over"


def test_damaged_hashes_are_no_proof(killed: Any, tmp_path: Path) -> None:
    killed(at=13)
    seal = tmp_path / "checkpoint-6" / "hashes.json"
    seal.write_text(seal.read_text().replace("model.safetensors", "model.safetensorz"))
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")


def test_a_checkpoint_that_was_never_sealed_is_taken_only_where_no_other_is(killed: Any, tmp_path: Path) -> None:
    killed(at=13)
    (tmp_path / "checkpoint-6" / "hashes.json").unlink()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")
    (tmp_path / "checkpoint-4" / "hashes.json").unlink()
    for path in tmp_path.glob("checkpoint-*"):
        (path / "hashes.json").unlink(missing_ok=True)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-6")
    assert any("without being verified" in line for line in recorded())


def test_accumulated_batches_weigh_by_their_labels(tmp_path: Path) -> None:
    """Two micro-batches of different numbers of labels give the gradient of both at once."""
    model = tiny()
    batches = [Batches()[0], Batches()[1]]
    batches[1]["labels"] = batches[1]["labels"].clone()
    batches[1]["labels"][:, 4:] = -100
    together = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
    model(**together)["loss"].backward()
    wanted = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model = tiny()
    grads: dict[str, torch.Tensor] = {}
    original = fit_module.build_optimizer

    def spying(model: Any, train: Train) -> Any:
        optimizer = original(model, train)
        step = optimizer.step

        def spy(*args: Any, **kwargs: Any) -> Any:
            grads.update({name: p.grad.clone() for name, p in model.named_parameters()})
            return step(*args, **kwargs)

        optimizer.step = spy
        return optimizer

    one = Train(lr=1e-3, steps=1, accumulation=2, precision="fp32", max_grad_norm=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_module, "build_optimizer", spying)
        fit(model, batches, TowerStage(name="tiny", train=one), tmp_path, seed=1, steps=1)
    for name, grad in wanted.items():
        torch.testing.assert_close(grads[name], grad)


def test_a_folder_of_another_recipe_is_refused(tmp_path: Path) -> None:
    stages = [{"name": "text", "train": {"lr": 0.1, "workers": 1}}, {"name": "keep", "train": {"lr": 0.1}}]
    check_identity(tmp_path, {"seed": 1, "stages": stages})
    changed = json.loads(json.dumps(stages))
    changed[0]["train"]["workers"] = 4
    check_identity(tmp_path, {"seed": 1, "stages": changed})  # moves no weight
    changed[1]["train"]["lr"] = 0.2
    with pytest.raises(ValueError, match=r"another recipe \(differs in stages\.keep\.train\.lr\)"):
        check_identity(tmp_path, {"seed": 1, "stages": changed})


def test_another_number_of_ranks_is_refused(killed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would take other batches, and steps past the schedule's end."""
    killed(at=13)
    monkeypatch.setattr(fit_module, "world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"holds a run of 1 ranks, and here there are 2.*; launch as many"):
        train(tmp_path)


def test_sharding_that_would_not_take_place_is_an_error(tmp_path: Path) -> None:
    """accelerate shards on accelerators alone, and trains on without a word elsewhere."""
    import dataclasses

    settings = TowerStage(name="tiny", train=dataclasses.replace(TRAIN, sharding="fsdp2"))
    with pytest.raises(ValueError, match="sharding: fsdp2 works on CUDA devices under a launcher"):
        fit(tiny(), Batches(0), settings, tmp_path, seed=1, steps=STEPS)


def test_a_full_disk_is_an_error_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1 << 20))
    with pytest.raises(OSError, match="1 MiB free"):
        fit(tiny(), Batches(0), STAGE, tmp_path, seed=1, steps=STEPS)


def test_a_tracker_that_is_not_there_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import integrations

    def missing() -> None:
        raise RuntimeError("it requires somelib to be installed")

    monkeypatch.setattr(integrations, "get_reporting_integration_callbacks", lambda names: [missing])
    with pytest.raises(ValueError, match="report_to: it requires somelib"):
        fit_module.check_trackers(["tensorboard"])


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    model = tiny()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="loss is nan at step 1"):
        fit(model, Batches(), STAGE, tmp_path, seed=1, steps=STEPS)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-20],
        lambda text: text[:30],
        lambda text: "",
        lambda text: "5\n" + text,
        lambda text: text.replace('"loss": ', '"loss": 1'),
        lambda text: text.encode() + b"\xff\n",
        lambda text: text + text,
    ],
)
def test_the_log_of_a_resumed_run_is_that_of_the_whole_one_whatever_became_of_it(
    whole: Any, killed: Any, tmp_path: Path, damage: Any
) -> None:
    killed(at=11)
    path = tmp_path / "metrics.jsonl"
    left = damage(path.read_text())
    path.write_bytes(left if isinstance(left, bytes) else left.encode())
    assert train(tmp_path)[0] == whole[0]


def test_the_log_of_a_run_that_begins_is_empty(tmp_path: Path) -> None:
    from transformers import TrainerState

    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3}\n{"step": 2, "lo')
    run_callback(path).on_train_begin(None, TrainerState(), None)
    assert path.read_text() == "" and logged_events([]) == []


def test_the_tower_has_its_own_learning_rate_and_norms_are_not_decayed() -> None:
    model = torch.nn.ModuleDict(
        {"vision_tower": torch.nn.Linear(2, 2), "decoder": torch.nn.Linear(2, 2), "frozen": torch.nn.Linear(2, 2)}
    )
    model["frozen"].requires_grad_(False)
    groups = parameter_groups(model, Train(lr=1e-3, tower_lr=1e-5, steps=1, weight_decay=0.1))
    found = {(group["lr"], group["weight_decay"], len(group["params"])) for group in groups}
    assert found == {(1e-5, 0.1, 1), (1e-5, 0.0, 1), (1e-3, 0.1, 1), (1e-3, 0.0, 1)}
    with pytest.raises(ValueError, match="nothing to train"):
        parameter_groups(model.requires_grad_(False), Train(lr=1e-3, steps=1))
