"""The text NIAH tasks through lmms-eval itself, with models that read the prompt by rule.

The oracle below is no language model: it looks for the asked number in the last characters of its prompt,
so it is right exactly where the needle is in its reach, and what every figure must be is known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from vniah.contract.requests import Tokens
from vniah.runs.read import read_run
from vniah.runs.scoring import ScoredPair
from vniah.text.puzzles import PREFIX
from vniah.text.task import TextPrompt

pytest.importorskip("lmms_eval")

TASKS = Path(__file__).resolve().parents[2] / "tasks"
FACT = re.compile(r"\nThe special magic ([\w ]+) number is: (\d{7})\.\n")


def encode(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def read(prompt: str, reach: int) -> str:
    """Answer a prompt from its last ``reach`` characters; a reader in need takes the last number it saw."""
    book, question = prompt.rsplit("</book>.", 1)
    facts = FACT.findall(book[-reach:])
    numbers = dict(facts)
    if found := re.search(r"have the special magic number (\d+)", question):
        return ", ".join(sorted(city for city, number in facts if number == found[1]))
    if found := re.search(r"special magic ([\w ,]+) and (\w+) numbers are", question):
        return ", ".join(numbers.get(city, "0") for city in (*found[1].split(", "), found[2]))
    if "Singapore" in numbers:
        return str(numbers["Singapore"])
    if "not there" in question:
        return "not there"
    return facts[-1][1] if facts else "7777777"


@pytest.fixture(scope="module")
def oracle() -> Callable[..., Any]:
    from lmms_eval.api.model import lmms

    class Oracle(lmms):  # type: ignore[misc]
        """Scores like an adapter that knows segments; generates like one that knows plain text."""

        def __init__(self, reach: int = 10**9, chat: bool = False, tell: bool = True) -> None:
            super().__init__()
            self.reach, self.is_simple, self.tell = reach, not chat, tell
            self.lengths: list[int] = []
            self.prompts: list[str] = []

        def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
            return [self._score(*request.args) for request in requests]

        def _score(self, context: str, target: str, doc_to_visual: Any, doc_id: int, task: str, split: str) -> Any:
            (visual,) = doc_to_visual(self.task_dict[task][split][doc_id])
            visual.bind_tokenizer(encode, "characters")
            media = visual.media()
            ids: list[int] = []
            for segment in visual.segments():
                if isinstance(segment, Tokens):
                    ids += media[segment.source].token_ids(segment.start, segment.stop).tolist()
                else:
                    ids += encode(segment.text)
            self.lengths.append(len(ids))
            said = encode(read("".join(map(chr, ids)), self.reach))
            answer = encode(target)
            # As in teacher forcing: one prediction an answer token.
            predicted = (said + [0] * len(answer))[: len(answer)]
            details = {
                "predicted": "".join(map(chr, predicted)),
                "predicted_ids": predicted,
                "answer_ids": answer,
                "answer_logprobs": [-0.5] * len(answer),
            }
            return ScoredPair(-0.5 * len(answer), predicted == answer, details if self.tell else None)

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            answers = []
            for request in requests:
                if self.is_simple:
                    prompt = request.args[0]
                    assert request.args[2](self.task_dict[request.task_name]["test"][request.doc_id]) == []
                else:
                    _, to_messages, _, doc_id, task, split = request.args
                    (message,) = to_messages(self.task_dict[task][split][doc_id])
                    (item,) = message["content"]
                    prompt = item["text"]
                self.prompts.append(prompt)
                answers.append(f"I think it is {read(prompt, self.reach)}.")
            return answers

        def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
            raise NotImplementedError

    return Oracle


@pytest.fixture(scope="module")
def manager() -> Any:
    from lmms_eval.tasks import TaskManager

    return TaskManager("ERROR", include_path=str(TASKS), include_defaults=False, model_name="oracle")


@pytest.fixture(autouse=True)
def grid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    values = {"LENGTHS": "1K,3K", "DEPTHS": "0,50,100", "SAMPLES": "2", "HAYSTACK": "builtin"}
    for key, value in values.items():
        monkeypatch.setenv(f"TEXT_NIAH_{key}", value)
    for key in ("TOKENIZER", "SEED"):
        monkeypatch.delenv(f"TEXT_NIAH_{key}", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def evaluate(model: Any, manager: Any, *tasks: str) -> dict[str, Any]:
    from lmms_eval.evaluator import simple_evaluate

    found = simple_evaluate(
        model=model, tasks=list(tasks), task_manager=manager, log_samples=True, bootstrap_iters=0, batch_size=1
    )
    assert found is not None
    return dict(found)


def figure(results: dict[str, Any], task: str, name: str) -> Any:
    return results["results"][task][f"{name},none"]


def samples(results: dict[str, Any], task: str, name: str = "text_niah_acc") -> list[dict[str, Any]]:
    return [row[name] for row in results["samples"][task] if name in row]


def every(results: dict[str, Any], task: str) -> list[dict[str, Any]]:
    """The whole dict of every cell, controls included, in the order in which they were asked."""
    return [row.get("text_niah_acc") or row["text_niah_control"] for row in results["samples"][task]]


def test_the_group_with_a_perfect_reader(oracle: Any, manager: Any, tmp_path: Path) -> None:
    model = oracle()
    results = evaluate(model, manager, "text_niah")
    assert figure(results, "text_niah", "text_niah_acc") == 1.0
    for count in (0, 3, 5):
        task = f"text_niah_{count}"
        assert figure(results, task, "text_niah_acc") == 1.0
        assert figure(results, task, "text_niah_control") == 0.0
        assert figure(results, task, "text_niah_effective_length") == 3000
        assert figure(results, task, "text_niah_grid")["3000"] == {"0": 1.0, "50": 1.0, "100": 1.0, "control": 0.0}
        scored = samples(results, task)
        assert len(scored) == 12 and len(samples(results, task, "text_niah_control")) == 2
        assert all(len(one["distractors"]) == count for one in scored)
        assert {one["length_unit"] for one in scored} == {"tokens of characters"}
    told = [one["num_tokens"] for count in (0, 3, 5) for one in every(results, f"text_niah_{count}")]
    assert sorted(told) == sorted(model.lengths), "the samples tell the exact length of what the model read"

    metadata = results["configs"]["text_niah_3"]["metadata"]
    assert metadata["lengths"] == "1K,3K" and metadata["num_distractors"] == 3 and metadata["seed"] == 24242424
    assert metadata["haystack"] == "builtin" and len(metadata["haystack_sha256"]) == 64
    json.dumps(results["configs"]["text_niah_3"])

    # What lmms-eval logs is enough for plots: cells with places and numbers, and no text of megabytes.
    path = tmp_path / "samples.jsonl"
    rows = [{key: value for key, value in row.items() if key != "doc"} for row in results["samples"]["text_niah_5"]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cells = read_run(path).cells
    assert len(cells) == 14 and sum(cells["control"]) == 2
    assert set(cells["num_frames"]) == {1000, 3000} and all(cells["correct"] != cells["control"])
    assert max(len(str(row["arguments"])) for row in rows) < 1000
    assert len({row["arguments"][0] for row in rows}) == len(rows), "caches keyed by the context tell cells apart"


def test_a_short_sighted_reader_fails_beyond_its_reach_and_takes_distractors(oracle: Any, manager: Any) -> None:
    results = evaluate(oracle(reach=1100), manager, "text_niah_0", "text_niah_5")
    assert figure(results, "text_niah_0", "text_niah_effective_length") == 1000
    grid = figure(results, "text_niah_0", "text_niah_grid")
    assert grid["1000"] == {"0": 1.0, "50": 1.0, "100": 1.0, "control": 0.0}
    assert grid["3000"] == {"0": 0.0, "50": 0.0, "100": 1.0, "control": 0.0}
    assert figure(results, "text_niah_0", "text_niah_acc") == pytest.approx(4 / 6)
    assert "text_niah_distracted,none" not in results["results"]["text_niah_0"]
    assert {one["mistake"] for one in samples(results, "text_niah_0")} == {"", "other"}

    wrong = [one for one in samples(results, "text_niah_5") if not one["correct"]]
    assert wrong
    for one in wrong:
        near = [place for place in one["distractors"] if one["num_tokens"] - place["index"] < 1100]
        assert one["mistake"] == "distractor" if near else one["mistake"] in ("other", "distractor")
        if near:
            # The last in reach is what it gives; another that begins with the same digits cannot be told from it.
            (named,) = (place for place in one["distractors"] if place["city"] == one["mistake_city"])
            assert _shares_start(named["number"], near[-1]["number"], one["answer"])
    distracted = figure(results, "text_niah_5", "text_niah_distracted")
    assert distracted == sum(one["mistake"] == "distractor" for one in samples(results, "text_niah_5")) / 12 > 0


def _shares_start(number: str, said: str, answer: str) -> bool:
    at = next(place for place, (a, b) in enumerate(zip(said, answer, strict=True)) if a != b)
    return number[: at + 1] == said[: at + 1]


def test_a_model_that_tells_no_details_is_scored_all_the_same(oracle: Any, manager: Any) -> None:
    results = evaluate(oracle(tell=False, reach=1100), manager, "text_niah_3")
    one = next(one for one in samples(results, "text_niah_3") if not one["correct"])
    assert one["predicted_ids"] == [] and one["mistake"] == "other"
    assert figure(results, "text_niah_3", "text_niah_acc") == 0.5


def test_a_mark_before_every_prompt_moves_all_positions(
    tmp_path: Path, manager: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from longva_model.lmms.longva_ring import LongVARing

    monkeypatch.setenv("VNIAH_CACHE", str(tmp_path))
    monkeypatch.setenv("TEXT_NIAH_LENGTHS", "500")
    monkeypatch.setenv("TEXT_NIAH_SAMPLES", "1")
    nano = LongVARing(pretrained="nano", device="cpu", journal=str(tmp_path / "journal.jsonl"))
    results = evaluate(nano, manager, "text_niah_3")
    lines = [json.loads(line) for line in (tmp_path / "journal.jsonl").open()]
    told = [line["result"]["prompt_tokens"] for line in lines if "run" not in line]
    (header,) = [line["run"] for line in lines if "run" in line]
    assert header["task"] == "text_niah_3" and header["measured"]["cells"] == 3
    assert sorted(told) == sorted(one["num_tokens"] for one in every(results, "text_niah_3"))
    prefix = len(nano.backend.token_ids(PREFIX))
    first = next(one for one in every(results, "text_niah_3") if one["depth_percent"] == 0)
    assert first["needle_index"] == first["needles"][0]["index"] == 1 + prefix  # the mark, then the prefix
    assert nano.backend.template.bos == "<bos>"


def test_variants(oracle: Any, manager: Any) -> None:
    tasks = ("text_niah_multi", "text_niah_keys", "text_niah_absent")
    results = evaluate(oracle(), manager, *tasks)
    for task in tasks:
        assert figure(results, task, "text_niah_acc") == 1.0, task
    assert figure(results, "text_niah_multi", "text_niah_recalled") == 1.0
    assert figure(results, "text_niah_keys", "text_niah_control") == 0.0
    assert figure(results, "text_niah_absent", "text_niah_abstained") == 1.0
    assert results["higher_is_better"]["text_niah_absent"]["text_niah_abstained"] is True
    absent = samples(results, "text_niah_absent", "text_niah_abstained")
    assert [one["answer"] for one in absent] == ["not there"] * 2 and all(one["needles"] == [] for one in absent)
    assert all(len(one["needles"]) == 3 for one in samples(results, "text_niah_multi"))

    short = evaluate(oracle(reach=1100), manager, "text_niah_multi")
    assert 0 < figure(short, "text_niah_multi", "text_niah_recalled") < 1


@pytest.mark.parametrize("chat", [False, True])
def test_generated_for_simple_and_chat_models(oracle: Any, chat: bool) -> None:
    from lmms_eval.tasks import TaskManager

    manager = TaskManager("ERROR", include_path=str(TASKS), include_defaults=False, model_name="other")
    model = oracle(chat=chat)
    tasks = ("text_niah_generate", "text_niah_generate_5", "text_niah_generate_absent")
    results = evaluate(model, manager, *tasks)
    for task in tasks:
        assert figure(results, task, "text_niah_acc") == 1.0, task
    assert figure(results, "text_niah_generate_absent", "text_niah_abstained") == 1.0
    assert figure(results, "text_niah_generate_5", "text_niah_control") == 0.0
    one = samples(results, "text_niah_generate_5")[0]
    assert "estimated" in one["length_unit"] and len(one["distractors"]) == 5
    assert json.loads(results["samples"]["text_niah_generate_5"][0]["text_niah_provenance"])["haystack"] == "builtin"
    told = figure(results, "text_niah_generate_5", "text_niah_provenance")
    assert told["num_distractors"] == 5 and told["scoring"] == "generated" and told["cells"] == 12
    assert all(prompt.startswith("This is a very long story book: <book>") for prompt in model.prompts)
    assert all(abs(len(prompt) / 4 - 3000) < 250 or abs(len(prompt) / 4 - 1000) < 250 for prompt in model.prompts)


def test_a_named_tokenizer_counts_for_models_that_bring_none(
    oracle: Any, manager: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(tmp_path / "words")
    monkeypatch.setenv("TEXT_NIAH_TOKENIZER", str(tmp_path / "words"))
    model = oracle()
    results = evaluate(model, manager, "text_niah_generate_3")
    for one, prompt in zip(every(results, "text_niah_generate_3"), model.prompts, strict=True):
        assert one["length_unit"] == f"tokens of {tmp_path / 'words'}"
        # White space stands between all pieces but the template's and the text's.
        assert abs(len(prompt.split()) - one["num_tokens"]) <= 2
        assert abs(one["haystack_tokens"] - one["context_length"]) < 60

    monkeypatch.setenv("TEXT_NIAH_TOKENIZER", str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="TEXT_NIAH_TOKENIZER="):
        evaluate(oracle(), manager, "text_niah_generate_3")


def test_bad_grid_is_named_before_any_model_runs(oracle: Any, manager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXT_NIAH_DEPTHS", "0-120:10")
    with pytest.raises(ValueError, match="a depth is a percentage from 0 to 100, got 120"):
        evaluate(oracle(), manager, "text_niah_0")


def test_the_prompt_tells_other_models_where_to_go(manager: Any) -> None:
    task = manager.load_task_or_group(["text_niah_0"])["text_niah_0"]
    (visual,) = task.doc_to_visual(task.test_docs()[0])
    assert isinstance(visual, TextPrompt)
    with pytest.raises(AttributeError, match="text_niah_generate"):
        _ = visual.size


def _adapter_scores(shared: Path, cache: Path, manager: Any, scoring: str, *tasks: str) -> dict[str, Any]:
    from longva_model.lmms.longva_ring import LongVARing

    model = LongVARing(
        pretrained=str(shared / "parity" / "LongVA-tiny-unires"),
        dtype="float32",
        device="cpu",
        scoring=scoring,
        journal=str(cache / f"{scoring}.jsonl"),
    )
    return evaluate(model, manager, *tasks)


def _tree_equals_plain(shared: Path, cache: Path, manager: Any, *tasks: str) -> int:
    """Score twice; every prediction must agree, and every log-probability within rounding. Returns the cells.

    What the samples say of a prompt's length must be what the model was fed, by the journal.
    """
    tree, plain = (_adapter_scores(shared, cache, manager, scoring, *tasks) for scoring in ("tree", "plain"))
    cells = 0
    for task in tasks:
        for fast, slow in zip(every(tree, task), every(plain, task), strict=True):
            assert fast["predicted_ids"] == slow["predicted_ids"] and len(fast["predicted_ids"]) > 0
            # Float32 sums over thousands of keys in another order: 2e-5 at most where it was looked at.
            assert fast["answer_logprobs"] == pytest.approx(slow["answer_logprobs"], abs=1e-4)
            assert fast["num_tokens"] == slow["num_tokens"]
            assert fast["length_unit"] == "tokens of the model"
            cells += 1
    for line in (cache / "tree.jsonl").read_text().splitlines():
        row = json.loads(line)
        if "run" in row:
            continue
        assert row["result"]["prompt_tokens"] == every(tree, row["task"])[row["doc_id"]]["num_tokens"]
    return cells


@pytest.mark.parametrize(
    ("lengths", "distractors", "cells"),
    [("300,500", 3, 16), pytest.param("1K-8K:1K", 5, 64, marks=pytest.mark.slow)],
)
def test_the_adapter_scores_alike_by_tree_and_plain(
    lengths: str, distractors: int, cells: int, shared: Path, tmp_path: Path, manager: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("TEXT_NIAH_LENGTHS", lengths)
    monkeypatch.setenv("TEXT_NIAH_SAMPLES", "1")
    monkeypatch.setenv("TEXT_NIAH_HAYSTACK", str(shared / "data" / "essays"))
    monkeypatch.setenv("VNIAH_CACHE", str(tmp_path))
    assert _tree_equals_plain(shared, tmp_path, manager, "text_niah_0", f"text_niah_{distractors}") == cells
