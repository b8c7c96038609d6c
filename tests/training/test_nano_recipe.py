"""The nano recipe, smaller: from nothing to retrieval far above chance; and the shipped weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from vniah.training.nano.figure4 import as_runs, collect, spread, table
from vniah.training.nano.text_tasks import IGNORE, TextTasks, with_text
from vniah.training.nano.vocabulary import build_tokenizer
from vniah.training.recipe import load_recipe
from vniah.training.runner import run_recipe
from vniah.training.stages import LengthPhase, as_data

SMALLER = [
    "text.train.steps=560",
    "text.data.phases=[{start: 0, length: 32, batch: 96}, {start: 480, length: 64, batch: 48}]",
    "tower.train.steps=700",
    "tower.pool_images=8000",
    "extension.train.steps=60",
    "extension.sequence_length=512",
    "extension.data.phases=[{start: 0, length: 128, batch: 24}, {start: 30, length: 256, batch: 12}]",
    "calibrate.train.steps=150",
    "calibrate.data.pool_images=2000",
    "align1.train.steps=120",
    "align2.train.steps=80",
    "align2.data.text_length=512",
    "align1.data.pool_images=2000",
    "align2.data.pool_images=2000",
    "evaluate.frames=4,16",
    "evaluate.depths=0,50,100",
    "evaluate.needles=20",
    "evaluate.require_accuracy=0",
]


@pytest.mark.slow
def test_a_smaller_recipe_retrieves_far_above_chance(tmp_path: Path) -> None:
    run_recipe(load_recipe("nano", [f"output={tmp_path / 'nano'}", *SMALLER]))
    report = json.loads((tmp_path / "nano" / "evaluate" / "vniah.json").read_text())
    # Chance is about 0.11: 8 colours and 10 digits.
    assert report["accuracy"] > 0.4 and report["control"] < 0.3, report


@pytest.fixture(scope="module")
def shipped() -> Any:
    from longva_model import LongVAForConditionalGeneration

    return LongVAForConditionalGeneration.from_pretrained(str(shipped_folder())).eval()


def shipped_folder() -> Path:
    import longva_model.nano

    assert longva_model.nano.__file__ is not None
    return Path(longva_model.nano.__file__).parent


def test_the_shipped_model_is_small_and_complete() -> None:
    folder = shipped_folder()
    for name in ("model.safetensors", "config.json", "tokenizer.json", "processor_config.json", "README.md"):
        assert (folder / name).is_file(), name
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 10_000_000


def test_the_shipped_tokenizer_is_the_one_the_code_builds() -> None:
    from vniah.training.load import load_tokenizer
    from vniah.training.nano.vocabulary import build_tokenizer

    assert load_tokenizer(str(shipped_folder())).get_vocab() == build_tokenizer().get_vocab()


def test_the_shipped_tokenizer_reads_every_needle_question() -> None:
    from vniah.needles import open_needles
    from vniah.training.load import load_tokenizer

    tokenizer = load_tokenizer(str(shipped_folder()))
    for needle in open_needles("icons:0:60"):
        assert tokenizer.unk_token_id not in tokenizer(needle.question, add_special_tokens=False).input_ids
        assert len(tokenizer(needle.answer, add_special_tokens=False).input_ids) == 1


def score_grid(model: Any, tokenizer: Any, grid: Any, *, haystack: str, needles: str) -> list[dict[str, Any]]:
    """As ``score_by_tree``, the plain way: one forward a cell through the model class."""
    import numpy as np

    from longva_model.pictures.preprocess import fit_frames, normalise
    from vniah.haystack import open_haystack
    from vniah.needles import open_needles
    from vniah.prompts import NANO, question_text

    needle_set = {needle.id: needle for needle in open_needles(needles)}
    film, size = open_haystack(haystack), model.config.layout.tile_size

    def encode(frames_NHWC: Any) -> torch.Tensor:
        return model.encode_frames(torch.from_numpy(normalise(fit_frames(frames_NHWC, "pad", size)))).float()

    def text(string: str) -> torch.Tensor:
        ids = tokenizer(string, add_special_tokens=False).input_ids
        return model.get_input_embeddings()(torch.tensor(ids, dtype=torch.long))

    scored = []
    with torch.no_grad():
        frames_FTD = encode(film.frames(0, grid.longest))
        for cell in grid.cells(needle_set):
            needle, k = needle_set[cell.needle], cell.needle_index
            seen_FTD = frames_FTD[: cell.length]
            if k is not None:
                needle_1TD = encode(np.asarray(needle.image)[None])
                seen_FTD = torch.cat([frames_FTD[:k], needle_1TD, frames_FTD[k : cell.length]])
            answer = tokenizer(needle.answer, add_special_tokens=False).input_ids
            parts = [text(NANO.pre), seen_FTD.flatten(0, 1), text(question_text(needle.question)), text(NANO.post)]
            prompt_TD = torch.cat([*parts, text(needle.answer)[:-1]])
            logits = model(inputs_embeds=prompt_TD[None], logits_to_keep=len(answer), use_cache=False).logits[0]
            predicted = logits.argmax(-1).tolist()
            scored.append(
                {
                    "num_frames": cell.length,
                    "depth_percent": cell.depth_percent,
                    "needle": cell.needle,
                    "correct": predicted == answer,
                    "predicted": tokenizer.decode(predicted, skip_special_tokens=True),
                    "answer": needle.answer,
                }
            )
    return scored


def test_the_shipped_model_finds_needles_it_has_never_seen(shipped: Any) -> None:
    from vniah.runs.grid import Grid
    from vniah.training.evaluate import summary
    from vniah.training.load import load_tokenizer

    cells = score_grid(
        shipped,
        load_tokenizer(str(shipped_folder())),
        Grid.parse("16,128", "0,50,100"),
        haystack="synthetic:3",
        needles="icons:5:10",
    )
    report = summary(cells)
    assert report["accuracy"] >= 0.9 and report["control"] <= 0.35, report


def test_the_evaluate_stage_scores_as_one_forward_a_cell_does(shipped: Any) -> None:
    from vniah.runs.grid import Grid
    from vniah.training.evaluate import score_by_tree
    from vniah.training.load import load_tokenizer

    grid = Grid.parse("3,40", "0,40,100")
    of = {"haystack": "synthetic:3", "needles": "icons:5:4"}
    tree = score_by_tree(str(shipped_folder()), {"frames": "3,40", "depths": "0,40,100", **of})
    assert tree == score_grid(shipped, load_tokenizer(str(shipped_folder())), grid, **of)
    assert len(tree) == 4 * 2 * 4


def test_the_table_gives_mean_and_spread(tmp_path: Path) -> None:
    for seed, accuracy in ((1, 0.9), (2, 1.0)):
        folder = tmp_path / str(seed) / "longva"
        folder.mkdir(parents=True)
        report = {"by_frames": {"64": accuracy, "512": 0.5}, "control": 0.1}
        (folder / "vniah.json").write_text(json.dumps(report))
    text = table(collect([tmp_path / "1", tmp_path / "2"]))
    assert "0.95 (0.90-1.00) | 0.50 (0.50-0.50) | 0.10 (0.10-0.10) | 2 |" in text
    assert spread([0.25]) == "0.25"
    assert "| Long text, UniRes (LongVA-nano) |" in text
    with pytest.raises(FileNotFoundError, match="nano_figure4"):
        collect([tmp_path / "none"])


def test_the_panels_hold_every_seed_and_the_length_of_their_text(tmp_path: Path) -> None:
    cells = [
        {"num_frames": 64, "depth_percent": depth, "needle": "n", "correct": True, "predicted": "red", "answer": "red"}
        for depth in (0, 100, None)
    ]
    for seed in (1, 2):
        for row in ("longva", "short_best_base"):
            folder = tmp_path / str(seed) / row
            folder.mkdir(parents=True)
            (folder / "vniah.json").write_text(json.dumps({"by_frames": {"64": 1.0}, "control": 1.0, "cells": cells}))
        recipe = json.dumps(as_data(load_recipe("nano_figure4", [f"seed={seed}", f"output={tmp_path}"])))
        (tmp_path / str(seed) / "recipe.json").write_text(recipe)
    long, short = as_runs([tmp_path / "1", tmp_path / "2"])
    assert (long.train_frames, short.train_frames) == (1024, 32)
    assert len(long.cells) == 6 and len(long.needles) == 2 and not long.missing()
    done = CliRunner().invoke(
        figure_app(), ["nano", str(tmp_path / "1"), str(tmp_path / "2"), "--csv", str(tmp_path / "f.csv")]
    )
    assert done.exit_code == 0 and "| 64 |" in done.output, done.output
    assert "Long text, UniRes" in (tmp_path / "f.csv").read_text()


def figure_app() -> Any:
    import typer

    from vniah.commands.figure import command

    app = typer.Typer()
    app.command()(command)
    return app


# Number facts in the wording of text NIAH, and text between the pictures of alignment.


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


@pytest.mark.parametrize("length", [64, 128, 1024])
def test_every_number_asked_for_is_told_once_with_its_key(tokenizer: Any, length: int) -> None:
    tasks = TextTasks(
        tokenizer, [LengthPhase(start=0, length=length, batch=40)], seed=3, repeat_share=0.0, number_share=1.0
    )
    batch = tasks.batch(0)
    several = 0
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        learnt = labels != IGNORE
        assert learnt.any() and np.array_equal(ids[learnt], labels[learnt])
        text = tokenizer.decode(ids.tolist())
        told = re.findall(r"\n *the special magic (\w+) number is : ([\d ]+?) \. \n", text)
        asked = re.findall(r"the special magic (\w+) number is : ([\d ]+?) <\|im_end\|>", text)
        assert len({key for key, _ in told}) == len(told)
        assert asked and set(asked) <= set(told)
        answers = "".join(number + " <|im_end|> " for _, number in asked).split()
        assert tokenizer.convert_ids_to_tokens(labels[learnt].tolist()) == answers
        several += len(told) > 1
    assert several or length == 64


def test_rows_too_short_for_numbers_have_facts(tokenizer: Any) -> None:
    phases = [LengthPhase(start=0, length=32, batch=20)]
    batch = TextTasks(tokenizer, phases, seed=3, repeat_share=0.0, number_share=1.0).batch(0)
    assert "magic" not in tokenizer.decode(batch["input_ids"].flatten().tolist())


def test_shares_above_the_whole_are_refused(tokenizer: Any) -> None:
    phases = [LengthPhase(start=0, length=64, batch=2)]
    with pytest.raises(ValueError, match=r"repeat 0.7, number 0.4"):
        TextTasks(tokenizer, phases, seed=3, repeat_share=0.7, number_share=0.4)


def test_text_comes_in_its_share_of_the_steps(tokenizer: Any) -> None:
    pictures = {"pixel_values": np.zeros(1)}
    make = with_text(lambda step: pictures, tokenizer, share=0.25, length=512, seed=5)
    batches = [make(step) for step in range(200)]
    text = [batch for batch in batches if batch is not pictures]
    assert 30 <= len(text) <= 70
    assert {batch["input_ids"].shape[1] for batch in text} == {128, 256, 512}
    for batch in text:
        assert set(batch) == {"input_ids", "labels", "attention_mask"}
        assert batch["input_ids"].size <= 4096 and batch["attention_mask"].all()
    again = with_text(lambda step: pictures, tokenizer, share=0.25, length=512, seed=5)
    step = next(step for step, batch in enumerate(batches) if batch is not pictures)
    assert np.array_equal(again(step)["input_ids"], batches[step]["input_ids"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("align2.data.text_share=1.5", "text_share"),
        ("align2.data.text_length=0", "text_length"),
    ],
)
def test_a_text_share_that_cannot_be_is_refused_on_load(change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe("nano", [change])
