"""Number facts in the wording of text NIAH, and text between the pictures of alignment."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from vniah.training.nano.text_tasks import IGNORE, TextTasks, with_text
from vniah.training.nano.vocabulary import build_tokenizer
from vniah.training.recipe import load_recipe
from vniah.training.stages import LengthPhase


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
