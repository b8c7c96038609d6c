"""The judge client against a scripted endpoint on loopback: good answers, and each way a judge can fail."""

from __future__ import annotations

import json

import pytest
from judge_server import Drip, Flood, JudgeServer, Step

from vniah.tasks.mlvu.judge import Judge, JudgeConfig, JudgeError, parse_scores

NAMES = ("accuracy", "relevance")
GOOD = 'The first point is made. {"accuracy": 4.5, "relevance": 3}'


def judge_for(server: JudgeServer, waits: list[float] | None = None, **options: object) -> Judge:
    config = JudgeConfig(url=server.url, model="grader", **options)  # type: ignore[arg-type]
    return Judge(config, sleep=(waits if waits is not None else []).append)


def scripted(*steps: Step) -> JudgeServer:
    """A server that takes one step a request, the last one again and again."""
    left = list(steps)
    return JudgeServer(lambda body: left.pop(0) if len(left) > 1 else left[0])


def test_a_good_reply_is_scored_and_the_request_is_a_chat_completion() -> None:
    with scripted(GOOD) as server:
        verdict = judge_for(server, key="secret").score("grade it", "the answer", NAMES)
    assert verdict.scores == {"accuracy": 4.5, "relevance": 3.0}
    assert verdict.reason == "" and verdict.reply == GOOD
    headers, body = server.requests[0]
    assert headers["Authorization"] == "Bearer secret"
    assert body == {
        "model": "grader",
        "temperature": 0,
        "messages": [{"role": "system", "content": "grade it"}, {"role": "user", "content": "the answer"}],
    }


def test_no_key_sends_no_authorization_and_the_key_is_not_in_the_repr() -> None:
    with scripted(GOOD) as server:
        judge_for(server).ask("", "")
    assert "Authorization" not in server.requests[0][0]
    assert "secret" not in repr(JudgeConfig(url="http://x/v1", model="m", key="secret"))


def test_errors_on_the_servers_side_are_retried_with_growing_waits() -> None:
    waits: list[float] = []
    with scripted(503, 429, b"not json", GOOD) as server:
        verdict = judge_for(server, waits, backoff_s=0.5).score("s", "u", NAMES)
    assert verdict.scores is not None
    assert waits == [0.5, 1.0, 2.0]


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (500, "HTTP 500"),
        (b"<html>", "not a chat completion"),
        (b'{"choices": []}', "not a chat completion"),
        (b"[" * 500_000, "not a chat completion"),
        (b'{"choices": ' + b"[" * 500_000, "not a chat completion"),
        (b"\xff\xfe{}", "not a chat completion"),
        (b"1" + b"0" * 400, "not a chat completion"),
        ("   ", "empty"),
        (0.0, "cannot be reached"),
    ],
)
def test_an_endpoint_that_stays_broken_leaves_the_answer_unscored(step: Step, reason: str) -> None:
    with scripted(step) as server:
        verdict = judge_for(server, retries=1).score("s", "u", NAMES)
    assert verdict.scores is None and reason in verdict.reason
    assert len(server.requests) == 2


def test_a_time_out_is_said_as_such() -> None:
    with scripted(2.0) as server:
        verdict = judge_for(server, timeout_s=0.1, retries=0).score("s", "u", NAMES)
    assert verdict.scores is None and verdict.reason == "the judge did not answer within 0.1 s"


@pytest.mark.parametrize("headers", [True, False])
def test_a_judge_that_drips_is_given_up(headers: bool) -> None:
    with scripted(Drip(0.05, headers)) as server:
        verdict = judge_for(server, timeout_s=0.4, retries=1).score("s", "u", NAMES)
    assert verdict.scores is None and verdict.reason == "the judge did not answer within 0.4 s"
    assert len(server.requests) == 2


def test_nothing_listens() -> None:
    with scripted(GOOD) as server:
        judge = judge_for(server, retries=0)
    verdict = judge.score("s", "u", NAMES)
    assert verdict.scores is None and "cannot be reached" in verdict.reason


@pytest.mark.parametrize("status", [401, 404, 302])
def test_a_refusal_is_not_retried_and_the_judge_is_asked_no_more(status: int) -> None:
    with scripted(status, GOOD) as server:
        judge = judge_for(server)
        assert f"HTTP {status}" in judge.score("s", "u", NAMES).reason
        assert "down" in judge.score("s", "u", NAMES).reason
    assert len(server.requests) == 1


def test_a_judge_that_fails_again_and_again_counts_as_down() -> None:
    with scripted(500) as server:
        judge = judge_for(server, retries=0, max_failures=3)
        reasons = [judge.score("s", "u", NAMES).reason for _ in range(5)]
    assert len(server.requests) == 3
    assert [("down" in reason) for reason in reasons] == [False, False, False, True, True]


def test_one_good_answer_between_failures_keeps_the_judge_up() -> None:
    with scripted(500, GOOD, 500, GOOD) as server:
        judge = judge_for(server, retries=0, max_failures=2)
        scored = [judge.score("s", "u", NAMES).scores is not None for _ in range(4)]
    assert scored == [False, True, False, True]


def test_nonsense_is_unscored_and_does_not_count_as_down() -> None:
    with scripted("I like it.", GOOD) as server:
        judge = judge_for(server, max_failures=1)
        first, second = judge.score("s", "u", NAMES), judge.score("s", "u", NAMES)
    assert first.scores is None and "no JSON object" in first.reason and first.reply == "I like it."
    assert second.scores is not None


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        ('{"accuracy": 1, "relevance": 5}', (1, 5)),
        ("{'accuracy': 2, 'relevance': 2.5, 'total': 4.5}", (2, 2.5)),
        ('first {"accuracy": 1, "relevance": 1} then {"accuracy": 4, "relevance": "3"}', (4, 3)),
        ('```json\n{"accuracy": 5,\n "relevance": 5}\n``` {"note": "done"}', (5, 5)),
    ],
)
def test_scores_are_read_from_the_last_object_that_has_them(reply: str, scores: tuple[float, float]) -> None:
    assert tuple(parse_scores(reply, NAMES).values()) == scores


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "accuracy: 4, relevance: 5",
        '{"accuracy": 4}',
        '{"accuracy": 6, "relevance": 5}',
        '{"accuracy": 0, "relevance": 5}',
        '{"accuracy": "high", "relevance": 5}',
        '{"accuracy": true, "relevance": 5}',
        '{"accuracy": null, "relevance": 5}',
        '{"accuracy": NaN, "relevance": 5}',
        '{"accuracy": 1' + "0" * 400 + ', "relevance": 5}',
        '{"accuracy": 1' + "0" * 6000 + ', "relevance": 5}',
        '{"accuracy": 1e999, "relevance": 5}',
        '{"accuracy": ' + "[" * 500_000 + ', "relevance": 5}',
        "{" * 500_000,
        "{" + "[" * 500_000 + "}",
        '{"accuracy": __import__("os"), "relevance": 5}',
    ],
)
def test_nonsense_has_no_scores(reply: str) -> None:
    with pytest.raises(ValueError, match="the judge") as caught:
        parse_scores(reply, NAMES)
    assert len(str(caught.value)) < 400


def test_the_judge_is_off_by_default_and_configured_by_environment() -> None:
    assert JudgeConfig.from_env({}) is None
    config = JudgeConfig.from_env(
        {
            "VNIAH_JUDGE_URL": "http://host:1/v1/",
            "VNIAH_JUDGE_MODEL": "m",
            "VNIAH_JUDGE_KEY": "k",
            "VNIAH_JUDGE_TIMEOUT": "5",
            "VNIAH_JUDGE_RETRIES": "0",
        }
    )
    assert config == JudgeConfig(url="http://host:1/v1/", model="m", key="k", timeout_s=5.0, retries=0)
    assert config is not None and config.endpoint == "http://host:1/v1/chat/completions"
    whole = JudgeConfig(url="https://host/v1/chat/completions", model="m")
    assert whole.endpoint == "https://host/v1/chat/completions"


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"VNIAH_JUDGE_URL": "host:80", "VNIAH_JUDGE_MODEL": "m"}, "VNIAH_JUDGE_URL"),
        ({"VNIAH_JUDGE_URL": "file:///etc/passwd", "VNIAH_JUDGE_MODEL": "m"}, "VNIAH_JUDGE_URL"),
        ({"VNIAH_JUDGE_URL": "http://host/v1"}, "VNIAH_JUDGE_MODEL"),
        ({"VNIAH_JUDGE_URL": "http://h/v1", "VNIAH_JUDGE_MODEL": "m", "VNIAH_JUDGE_TIMEOUT": "soon"}, "TIMEOUT"),
        ({"VNIAH_JUDGE_URL": "http://h/v1", "VNIAH_JUDGE_MODEL": "m", "VNIAH_JUDGE_RETRIES": "-1"}, "retries"),
    ],
)
def test_a_wrong_setting_is_named(environ: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        JudgeConfig.from_env(environ)


def test_an_overlong_reply_is_refused() -> None:
    big = json.dumps({"choices": [{"message": {"content": "x" * (2 << 20)}}]}).encode()
    with scripted(big) as server, pytest.raises(JudgeError, match="longer"):
        judge_for(server, retries=0).ask("s", "u")


@pytest.mark.parametrize("status", [200, 302, 404, 500])
def test_an_answer_without_end_is_left(status: int) -> None:
    with scripted(Flood(status)) as server:
        verdict = judge_for(server, retries=0).score("s", "u", NAMES)
        # What the kernel's buffers hold was not read.
        assert server.flooded.get(timeout=10) < 32 << 20
    assert verdict.scores is None
    assert verdict.reason == (
        f"the judge answered HTTP {status}" if status != 200 else "the judge's answer is longer than 1048576 bytes"
    )
    assert len(server.requests) == 1
