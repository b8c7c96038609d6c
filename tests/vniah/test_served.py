"""Models behind a server: the same cells, the paper's score by greedy decoding, and one line for whatever it does."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from command_line import output_of
from served_server import IMAGE_TOKENS, Fault, ServedServer

from vniah import notices
from vniah.needles import open_needles
from vniah.runs.measure import CellError, measure
from vniah.runs.open import open_tasks
from vniah.runs.read import read_run
from vniah.runs.run import Run
from vniah.runs.scoring import begins_with, begins_with_text
from vniah.runs.task import Answer, NeedleTask
from vniah.served import model as module
from vniah.served.arguments import ServedArgs
from vniah.served.asking import Asker
from vniah.served.endpoint import Endpoint, EndpointError
from vniah.served.model import ServedModel
from vniah.served.plan import cell_request, plan_served
from vniah.served.reply import Reply
from vniah.served.reuse import reused_tokens, tree_order

SMALL: dict[str, Any] = {
    "frames": "4,6",
    "depths": "0,50,100",
    "needles": "icons:0:2",
    "haystack": "synthetic:0:10:32x24",
}
CELLS = 16  # controls among them
NEEDLES = open_needles("icons:0:3")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for key in [
        key for key in os.environ if key.startswith(("VNIAH_", "TEXT_NIAH_", "OPENAI_")) and key != "VNIAH_SHARED"
    ]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("VNIAH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def right_answer(parts: list[dict[str, Any]]) -> str:
    question = parts[-1]["text"]
    return next(needle.answer for needle in NEEDLES if needle.question.strip() == question.strip())


def knows_some(parts: list[dict[str, Any]]) -> str:
    """Right of about half of the prompts, by a hash of what is shown and asked; else the answer and more letters."""
    text = json.dumps([{key: one for key, one in part.items() if key != "uuid"} for part in parts])
    digest = hashlib.sha256(text.encode()).digest()[0]
    return right_answer(parts) + (" it is" if digest % 2 else "s") if digest % 4 else "nothing of that"


@functools.cache
def opened(name: str) -> NeedleTask:
    (task,) = open_tasks([name], SMALL)
    return task


def evaluate(
    server: ServedServer, task: str = "vniah", limit: int | None = None, output: Path | None = None, **options: Any
) -> Run:
    """As ``vniah.evaluate``, with tasks that are open already."""
    notices.begin()
    given = {"model": "tiny", "base_url": server.url, "retries": 2, "timeout": 5, **options}
    model = ServedModel(ServedArgs.read(given), folder=output)
    (run,) = measure([opened(task)], model, output=output, limit=limit)
    return run


def scores(run: Run) -> dict[tuple[Any, ...], bool]:
    cells = run.cells.fillna({"depth_percent": -1})
    return {(one.num_frames, one.depth_percent, one.needle): one.correct for one in cells.itertuples()}


@pytest.fixture(scope="module")
def expected() -> dict[tuple[Any, ...], bool]:
    """What a server without faults is scored."""
    with ServedServer(knows_some) as server:
        return scores(evaluate(server))


Scores = dict[tuple[Any, ...], bool]


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vniah.served.endpoint._MAX_WAIT_S", 0.0)


def test_the_papers_score_by_token_ids_and_by_text() -> None:
    with ServedServer(knows_some) as vllm, ServedServer(knows_some, dialect="plain") as plain:
        by_ids, by_text = evaluate(vllm), evaluate(plain)
        ids = scores(by_ids)
        assert len(ids) == CELLS and 0 < sum(ids.values()) < CELLS
        assert sum(ids.values()) == sum(knows_some(parts).startswith(right_answer(parts)) for parts in vllm.asked)
        frames = Counter(sum(part["type"] == "image_url" for part in parts) for parts in vllm.asked)
        assert frames == {4: 2, 5: 6, 6: 2, 7: 6}
        # "Pandas" begins with the tokens of "Panda" here, where a letter is a token; by text nobody can know.
        text = scores(by_text)
        assert {cell for cell in text if text[cell]} < {cell for cell in ids if ids[cell]}
        told = by_ids.settings["model"]
        assert told["compared_by"] == {"token ids": CELLS} and told["server"] == "vllm"
        assert told["presentation"] == "images" == by_ids.settings["task"]["presentation"]
        assert by_text.settings["model"]["compared_by"] == {"text": CELLS}
        logged = next(one for one in by_ids.cells.itertuples() if one.correct)
        assert logged.answer_logprobs == (-0.5,) * len(logged.answer)
        assert all(body["temperature"] == 0 for body in vllm.bodies + plain.bodies)
        assert all(body["repetition_penalty"] == 1.0 for body in vllm.bodies)


def test_free_answers_are_read_as_everywhere(tmp_path: Path) -> None:
    with ServedServer(lambda parts: f"It is {right_answer(parts)}.") as server:
        found = evaluate(server, "vniah_generate", output=tmp_path)
        assert all(scores(found).values()) and found.metrics["vniah_exact"] == 0
        assert {len(parts) - 1 for parts in server.asked} == {6, 8}
        film = evaluate(server, "vniah_generate", presentation="video", limit=2)
        assert len(film.cells) == 2 and server.asked[-1][0]["video_url"]["url"].startswith("data:video/mp4;base64,")
        assert film.settings["task"]["presentation"] == "video"


def test_the_exact_score_of_free_answers_is_told_beside_the_lenient_one() -> None:
    task = opened("vniah_generate")
    row = next(row for row in task.rows if not row["control"])
    answer = row["answer"]
    said = (answer, f"{answer}.", f"It is {answer}.", f"{answer}s")
    values = [task.scores(row, Answer(text=text)) for text in said]
    assert [one["vniah_exact"] for one in values] == [1.0, 1.0, 0.0, 0.0]
    assert [one["vniah_acc"]["correct"] for one in values[:3]] == [True] * 3
    assert task.metrics["vniah_exact"][0]([1.0, 0.0]) == 0.5
    assert "vniah_exact" not in opened("vniah").metrics


def test_other_kinds_and_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VNIAH_DISTANCE", "10")
    film = {"frames": "40", "depths": "0,100", "haystack": "synthetic:0:60:32x24"}
    text = {"lengths": "200", "depths": "0,100", "samples": 1, "haystack": "builtin", "seed": 0}
    with ServedServer(lambda parts: "nothing") as server:
        model = ServedModel(ServedArgs.read({"model": "tiny", "base_url": server.url}))
        runs = measure(
            [
                *open_tasks(["vniah_d"], {**film, "needles": "icons:0:1"}),
                *open_tasks(["vruler_when", "vruler_when_generate"], film),
                *open_tasks(["text_niah_0", "text_niah_generate"], text),
            ],
            model,
            limit=3,
        )
        assert [len(run.cells) for run in runs] == [3] * 5 and not any(run.cells["correct"].any() for run in runs)
        raw = [body for body in server.bodies if "prompt" in body]
        assert len(raw) == 3 and all(body["logprobs"] == 1 and len(body["prompt"]) > 400 for body in raw)
        assert len(server.asked) == 15


def test_timestamps_stand_between_frames() -> None:
    with ServedServer(knows_some) as server:
        run = evaluate(server, timestamps=True, limit=1)
        parts = server.asked[0]
        kinds = [part["type"] for part in parts]
        assert kinds == ["text", "image_url"] * ((len(parts) - 1) // 2) + ["text"]
        assert parts[0]["text"] == "<0.0 seconds>" and parts[2]["text"] == "<1.0 seconds>"
        assert run.settings["task"]["timestamps"] is True


def test_a_killed_run_repeats_nothing(expected: Scores, tmp_path: Path, no_waits: None) -> None:
    with ServedServer(knows_some, faults={7: (400, "bad image", {})}) as server:
        with pytest.raises(CellError, match=r"HTTP 400: bad image.*the same command goes on.*answered are in") as error:
            evaluate(server, output=tmp_path, concurrency=3)
        kept = sum(answer is not None for answer in error.value.answered)
        # What was on its way when one failed is kept, and nothing is sent behind it.
        assert 7 <= kept == len(server.asked) - 1 <= 10
        (journal,) = tmp_path.rglob("journal-*.jsonl")
        assert scores(read_run(journal, partial=True)).items() <= expected.items()
        server.faults.clear()
        assert scores(evaluate(server, output=tmp_path, concurrency=3)) == expected
        assert len(server.asked) == CELLS + 1 and not list(tmp_path.rglob("journal-*"))
        shown = [json.dumps(parts) for parts in server.asked]
        assert len(set(shown)) == CELLS


WRONG_ONCE: tuple[Fault, ...] = (
    (429, "slow down", {"Retry-After": "0.05"}),
    (503, "overloaded", {}),
    "cut",
    "empty choice",
    b"<html>gateway</html>",
    b"[1, 2]",
)


def test_what_goes_wrong_once_is_asked_again(expected: Scores, no_waits: None) -> None:
    with ServedServer(knows_some, faults=dict(zip(range(0, 12, 2), WRONG_ONCE, strict=True))) as server:
        assert scores(evaluate(server, concurrency=1)) == expected
        assert len(server.asked) == CELLS + len(WRONG_ONCE)


FATAL: dict[str, tuple[Fault, str]] = {
    "rate limit for ever": ((429, "slow down", {"Retry-After": "3600"}), "HTTP 429: slow down; it asks to wait 3600 s"),
    "no money": ((429, "You exceeded your quota (insufficient_quota)", {}), "the account has no money left"),
    "context": ((400, "This model's maximum context length is 4096 tokens", {}), "serve with a longer context"),
    "images": ((400, "At most 3 image(s) may be provided in one prompt.", {}), "limits the images of a request"),
    "too large": ((413, "", {}), "HTTP 413"),
    "elsewhere": ((307, "", {"Location": "http://127.0.0.1:9/v1"}), "redirects.*127.0.0.1:9.*is not followed"),
    "other model": ("other model", "answers as 'another', and 'tiny' was asked"),
    "drip": ("drip", "did not answer within 0.3 s"),
    "an error that is called an answer": (b'{"error": {"message": "no GPU"}}', "answered an error: no GPU"),
    "thoughts": (b'{"model": "tiny", "choices": [{"message": {"content": "<think>"}}]}', "thinks before it answers"),
    "nothing there": ((404, "Not Found", {}), r"HTTP 404: Not Found \(base_url ends before /chat/completions"),
    "flood": (b" " * (9 << 20), "longer than 8388608 bytes"),
}


@pytest.mark.parametrize(("fault", "line"), FATAL.values(), ids=list(FATAL))
def test_what_cannot_go_well_is_one_line_and_what_was_scored_is_kept(
    fault: Fault, line: str, expected: Scores, tmp_path: Path, no_waits: None
) -> None:
    with ServedServer(knows_some, faults=dict.fromkeys(range(4, 99), fault)) as server:
        timeout = 0.3 if fault == "drip" else 5
        with pytest.raises(CellError, match=line) as error:
            evaluate(server, output=tmp_path, concurrency=1, retries=1, timeout=timeout)
        assert "\n" not in str(error.value) and "at the cell vniah, num_frames" in str(error.value)
    kept = scores(read_run(tmp_path, partial=True))
    assert len(kept) == 4 and kept.items() <= expected.items()


def test_a_server_that_cannot_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(line: str, server: ServedServer, **more: Any) -> None:
        with pytest.raises(ValueError, match=line) as error:
            evaluate(server, **more)
        assert "\n" not in str(error.value) and not server.asked

    with ServedServer(knows_some) as server:
        refused("http://127.0.0.1:9/v1 cannot be reached", server, base_url="http://127.0.0.1:9/v1")
        server.model = "tinyer"
        refused("serves no model 'tiny'; did you mean 'tinyer'", server)
    with ServedServer(knows_some, key="secret") as server:
        refused("set OPENAI_API_KEY to a key", server)
        monkeypatch.setenv("OPENAI_API_KEY", "wrong")
        refused("refuses the key in OPENAI_API_KEY", server)
        monkeypatch.setenv("OPENAI_API_KEY", "secret")
        told = json.dumps(evaluate(server, limit=1, output=tmp_path).settings)
        assert "secret" not in told and not any("secret" in file.read_text() for file in tmp_path.rglob("*.json*"))
    with ServedServer(knows_some, samples=True) as server:
        refused("samples although greedy answers were asked", server)


def test_refusals_and_empty_answers_are_no_wrong_ones(
    expected: Scores, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ServedServer(knows_some, faults={2: "refused", 5: "empty", 9: "empty"}) as server:
        run = evaluate(server, output=tmp_path, concurrency=1)
        kept = scores(run)
        assert len(kept) == CELLS - 3 and kept.items() <= expected.items()
        assert "3 of 16 cells have no answer and are not scored (2 empty, 1 refused)" in capsys.readouterr().err
        server.faults.clear()
        assert scores(evaluate(server, output=tmp_path)) == expected and len(server.asked) == CELLS + 3
    with (
        ServedServer(knows_some, faults=dict.fromkeys(range(99), "refused")) as server,
        pytest.raises(ValueError, match="answered none of 16 cells: 16 refused"),
    ):
        evaluate(server)


def test_prefixes_are_shared_as_planned_and_less_in_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = {**SMALL, "frames": "8", "depths": "0-100:25", "needles": "icons:0:3"}
    tasks = open_tasks(["vniah"], grid)
    # One prompt and no more.
    room = 9 * IMAGE_TOKENS + max(len(str(row["question"]).encode()) for row in tasks[0].rows)

    def hits(mixed: bool) -> tuple[list[int], list[int]]:
        with ServedServer(right_answer, room=room) as server:
            args = ServedArgs.read({"model": "tiny", "base_url": server.url, "concurrency": 1})
            model = ServedModel(args)
            model.check(tasks)
            cells = [("vniah", number) for number in range(len(tasks[0].rows))]
            requests = [cell_request(tasks[0], number) for _, number in cells]
            order = tree_order(requests)
            if mixed:
                random.Random(0).shuffle(order)
            with monkeypatch.context() as patched:
                patched.setattr(module, "tree_order", lambda _: order)
                model.answers({"vniah": tasks[0]}, cells)

            def tokens(unit: Any) -> int:
                return len(unit.text.encode()) if hasattr(unit, "text") else IMAGE_TOKENS

            planned = [reused for _, reused in reused_tokens([requests[one] for one in order], tokens, room)]
            assert model.asker.usage.cached_tokens == sum(server.hits)
            return server.hits, planned

    in_order, planned = hits(mixed=False)
    assert in_order == planned and sum(in_order) > 0
    by_chance, planned = hits(mixed=True)
    assert by_chance == planned and sum(by_chance) < 0.85 * sum(in_order)


def test_the_plan_is_what_a_run_does(tmp_path: Path) -> None:
    grid = {**SMALL, "frames": "8", "depths": "0,50,100"}
    with ServedServer(right_answer) as server:
        tasks = open_tasks(["vniah"], grid)
        given = {"model": "tiny", "base_url": server.url, "price_in": 1, "price_out": 1, "concurrency": 1}
        (run,) = measure(tasks, ServedModel(ServedArgs.read({**given, "self_check": False})))
        plan = plan_served(tasks, IMAGE_TOKENS)
        question = sum(len(parts[-1]["text"].encode()) for parts in server.asked)
        shown = sum(IMAGE_TOKENS * (len(parts) - 1) for parts in server.asked)
        told = run.settings["model"]
        assert plan.requests == len(server.asked) and told["requests"] == plan.requests + 1
        # Text is estimated, and none of it is shared.
        assert plan.reused_tokens == told["cached_tokens"] == sum(server.hits) > 0
        assert plan.prompt_tokens - shown == pytest.approx(question / 4, rel=0.2)
        assert plan.answer_tokens >= told["answer_tokens"] - 10
        flags = [part for key, value in grid.items() for part in (f"--{key}", str(value))]
    flags += ["--served", "--frame-tokens", "10", "--price-in", "2", "--price-out", "8", "--price-cached", "0.2"]
    said = output_of("plan", *flags)
    assert f"{plan.prompt_tokens:,}" in said and f"{plan.reused_tokens:,}" in said and "money" in said


def test_frames_carry_stable_ids_where_the_server_takes_them() -> None:
    with ServedServer(knows_some) as vllm, ServedServer(knows_some, owner="somebody") as other:
        evaluate(vllm)
        evaluate(other, limit=1)
        known: dict[str, str] = {}
        for part in (part for parts in vllm.asked for part in parts if part["type"] == "image_url"):
            assert known.setdefault(part["uuid"], part["image_url"]["url"]) == part["image_url"]["url"]
        assert len(known) == len(set(known.values())) == 6 + 2
        assert not any("uuid" in part for parts in other.asked for part in parts)


def test_at_most_so_many_at_once_and_the_first_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(parts: list[dict[str, Any]]) -> str:
        import time

        time.sleep(0.02)
        return right_answer(parts)

    with ServedServer(slow) as server:
        assert all(scores(evaluate(server, concurrency=3)).values())
        assert 2 <= server.most_at_once <= 3


def test_a_budget_ends_a_run_and_a_larger_one_goes_on(expected: Scores, tmp_path: Path) -> None:
    money = {"price_in": 1000, "price_out": 1000}  # a token is 0.001
    with ServedServer(knows_some) as whole:
        run = evaluate(whole, output=tmp_path / "whole", **money)
        spent = run.settings["model"]["spent"]
        assert spent == pytest.approx(
            0.001 * sum(run.settings["model"][f"{one}_tokens"] for one in ("prompt", "answer"))
        )
    with ServedServer(knows_some) as server:
        with pytest.raises(CellError, match=r"the budget of .* is all but spent.*a larger budget goes on"):
            evaluate(server, output=tmp_path, budget=spent / 2, **money)
        asked = len(server.asked)
        assert 0 < asked < CELLS
        with pytest.raises(CellError, match="all but spent"):
            evaluate(server, output=tmp_path, budget=spent / 2, **money)
        assert len(server.asked) == asked  # what was spent before counts
        run = evaluate(server, output=tmp_path, budget=2 * spent, **money)
        assert scores(run) == expected and len(server.asked) == CELLS
    with pytest.raises(ValueError, match="a budget needs prices"):
        evaluate(server, budget=1)


def test_a_server_that_samples_frames_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    with ServedServer(knows_some) as server:
        evaluate(server, presentation="video")
        assert "reads prompts of 4, 6 frames as equally many tokens" in capsys.readouterr().err
        # A control of 5 frames is as long as a cell of 4 and its needle.
        (task,) = open_tasks(["vniah"], {**SMALL, "frames": "4,5", "depths": "0"})
        notices.forget()
        measure([task], ServedModel(ServedArgs.read({"model": "tiny", "base_url": server.url})))
        assert "equally many" not in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_line(tmp_path: Path) -> None:
    flags = [part for key, value in SMALL.items() for part in (f"--{key}", str(value))]
    with ServedServer(knows_some) as server:
        given = ["vniah", "--model", "openai:tiny", "--base-url", server.url, *flags, "-o", str(tmp_path)]
        assert "wrote" in output_of("run", *given, "--model-args", "concurrency=4,timestamps=1")
        assert read_run(tmp_path).settings["model"]["timestamps"] is True


def test_ask(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")

    def counts(parts: list[dict[str, Any]]) -> str:
        return f"{sum(part['type'] == 'image_url' for part in parts)} seen: {parts[-1]['text']}"

    with ServedServer(counts) as server:
        given = [
            str(tmp_path / "red.png"),
            "What?",
            "--then",
            "And?",
            "--model",
            "openai:tiny",
            "--base-url",
            server.url,
        ]
        said = output_of("ask", *given)
        assert said.split("\n")[:4] == ["> What?", "1 seen: What?", "> And?", "0 seen: And?"]
        roles = [message["role"] for message in server.bodies[-1]["messages"]]
        assert roles == ["user", "assistant", "user"]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"base_url": "ftp://x"}, "must be an http"),
        ({"base_url": "http://me:word@x"}, "holds a user or password"),
        ({"base_url": "http://x/v1?key=word"}, "goes on with"),
        ({"base_url": "http://x:99999/v1"}, "must be an http"),
        ({"api_key": "x"}, "set OPENAI_API_KEY"),
        ({"concurency": 3}, "did you mean 'concurrency'"),
        ({"concurrency": 0}, "concurrency=0: expected a whole number"),
        ({"timeout": "soon"}, "timeout='soon': expected a number"),
        ({"presentation": "film"}, "expected one of auto, images, video"),
        ({"price_cached": 1}, "goes with price_in"),
        ({"model": " "}, "needs its name"),
    ],
)
def test_arguments_that_cannot_be(given: Mapping[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line) as error:
        ServedArgs.read({"model": "tiny", **given})
    assert "word@" not in str(error.value) and "=word" not in str(error.value)


def test_a_key_is_never_told_and_a_proxy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("sk-a\nb", "sk-\u00fc"):
        with pytest.raises(ValueError, match="has characters that no header holds") as error:
            Endpoint(url="http://x/v1", key=key)
        assert "sk-" not in str(error.value)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for proxy in ("http://127.0.0.1:9", "nonsense://127.0.0.1:9"):
        monkeypatch.setenv("HTTP_PROXY", proxy)
        with pytest.raises(EndpointError, match="through the proxy in HTTP_PROXY"):
            Endpoint(url="http://127.0.0.1:9/v1", timeout_s=5).models()
    monkeypatch.delenv("HTTP_PROXY")
    with ServedServer(knows_some) as server, pytest.raises(EndpointError, match="it speaks http, not https"):
        Endpoint(url=server.url.replace("http", "https"), timeout_s=5).models()


def test_thoughts_are_no_answers() -> None:
    beside = reply(message={"content": "Panda", "reasoning_content": "Black and white."})
    assert beside.thinks and beside.said == "Panda"
    whole = reply(message={"content": "<think>\nA panda?</think>\n\nNo."})
    assert whole.thinks and not whole.failure and whole.said == "No."
    assert reply(message={"content": "<think>\nA panda"}).failure == "still thinking"
    assert reply(message={"content": None, "reasoning": "A"}).failure == "still thinking"
    assert not reply(message={"content": "<"}).thinks
    with ServedServer(lambda parts: "<think> it is " + right_answer(parts)) as server:
        with pytest.raises(CellError, match=r"tiny thinks before it answers.*thinking=off"):
            evaluate(server, limit=2)
        with pytest.raises(ValueError, match="answered none of 2 cells: 2 still thinking"):
            evaluate(server, "vniah_generate", limit=2)


def test_token_ids_of_another_tokenizer_are_not_used(expected: Scores, capsys: pytest.CaptureFixture[str]) -> None:
    with ServedServer(knows_some) as server:
        server.shift = 1000
        run = evaluate(server)
        assert scores(run) == expected and run.settings["model"]["compared_by"] == {"tokens": CELLS}
        assert "token ids that are not of its own answer" in capsys.readouterr().err
    # Fewer than it says to have written: not those of the whole answer.
    assert reply(message={"content": "abc"}, token_ids=[1]).token_ids == ()


def test_tokens_that_nobody_told_are_not_none() -> None:
    asker = Asker(ServedArgs.read({"model": "tiny", "price_in": 1}))
    asker.usage.add(Reply.read({"choices": [{"message": {"content": "a"}}]}))
    told = asker.told()
    assert told["requests_without_usage"] == 1 and not told.keys() & {"prompt_tokens", "answer_tokens", "spent"}


def reply(**choice: Any) -> Reply:
    return Reply.read({"model": "tiny", "choices": [choice], "usage": {"completion_tokens": 3}})


def test_where_text_tokens_and_token_ids_differ() -> None:
    """One text, several cuts: what each way of comparing can see."""
    message = {"message": {"content": "Pandas"}}
    pieces = lambda *tokens: {"logprobs": {"content": [{"token": one, "logprob": -1.0} for one in tokens]}}  # noqa: E731
    ids = {"Panda": 1, "s": 2, "Pand": 3, "as": 4, "Pan": 5, "da": 6}

    def judged(*tokens: str, **told: Any) -> tuple[bool | None, str]:
        answer, by = reply(**message, **pieces(*tokens), **told).forced("Panda", [ids["Panda"]])
        return answer.is_greedy, by

    assert judged("Panda", "s", token_ids=[1, 2]) == (True, "token ids")
    assert judged("Pand", "as", token_ids=[3, 4]) == (False, "token ids")
    assert judged("Pan", "da", "s", token_ids=[5, 6, 2]) == (False, "token ids")
    assert judged("Panda", "s") == (True, "tokens")
    assert judged("Pand", "as") == (False, "tokens")
    assert judged("Pan", "da", "s") == (True, "tokens")  # another cut of the same text
    assert reply(**message).forced("Panda", ())[0].is_greedy is False
    # Asked for one token, a server writes "Pand" or "Panda".
    for text, right in (("Panda", True), ("Pand", False)):
        answer, by = reply(message={"content": text}).forced("Panda", [1], cut=True)
        assert answer.is_greedy is right and by == "text of as many tokens"
    # A first token with a space reads like one without where a tokenizer's decoder drops it.
    assert reply(message={"content": "Panda."}).forced("Panda", ())[0].is_greedy is True
    assert reply(message={"content": " Panda"}).forced("Panda", ())[0].is_greedy is False
    assert begins_with([1, 2, 9], [1, 2]) and not begins_with([1], [1, 2]) and not begins_with([1], [])
    assert begins_with_text("12:30", "12") and not begins_with_text("120", "12") and not begins_with_text("x", "")


def test_an_end_at_once_is_wrong_and_silence_is_none() -> None:
    ended = reply(message={"content": ""}, token_ids=[7])
    answer, _ = ended.forced("Panda", [1])
    assert answer.is_greedy is False and not answer.unanswered
    told = Reply.read({"choices": [{"message": {"content": ""}}]})
    assert told.failure == "empty" and told.forced("Panda", ())[0].unanswered == "empty"


def test_the_wait_that_a_server_asks_for_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    class Clock:
        def wait(self, seconds: float) -> bool:
            waits.append(seconds)
            return False

    endpoint = Endpoint(url="http://127.0.0.1:9/v1", retries=2)
    errors: Iterator[EndpointError] = iter([EndpointError("a", wait_s=7.0), EndpointError("b")])

    def once(path: str, body: Any) -> Mapping[str, Any]:
        error = next(errors, None)
        if error is not None:
            raise error
        return {"choices": []}

    monkeypatch.setitem(vars(endpoint), "once", once)
    assert endpoint.ask("chat/completions", {}, dict, Clock()) == {"choices": []}  # type: ignore[arg-type]
    assert waits[0] == 7.0 and 1.5 <= waits[1] <= 2.5
