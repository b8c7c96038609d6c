"""A judge for free answers: any OpenAI-compatible chat endpoint, chosen by environment, off by default.

``VNIAH_JUDGE_URL`` (the base, as in ``http://127.0.0.1:8000/v1``), ``VNIAH_JUDGE_MODEL`` and, if the
endpoint wants one, ``VNIAH_JUDGE_KEY``. A judge that is off, slow, down or talks nonsense leaves an
answer *unscored* with the reason; it never makes it a zero and never ends a run. Knows no benchmark:
what to ask and which scores to expect is the caller's.
"""

from __future__ import annotations

import ast
import functools
import json
import math
import os
import re
import reprlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from vniah.files import parse_json
from vniah.hub import within

OFF = "the judge is off (set VNIAH_JUDGE_URL and VNIAH_JUDGE_MODEL to score)"

_MAX_REPLY_BYTES = 1 << 20
_MAX_OBJECT_CHARS = 2000
_MAX_WAIT_S = 60.0
# Worth another try: time-outs, conflicts, rate limits, and whatever goes wrong on the server's side.
_RETRY_STATUS = frozenset({408, 409, 425, 429})


class JudgeError(RuntimeError):
    """The judge could not be asked. ``permanent`` means that asking again is pointless."""

    def __init__(self, message: str, *, permanent: bool = False, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.permanent = permanent
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeConfig:
    """Where the judge is and how patient to be. ``ValueError``: no http(s) URL, no model, a number out of range."""

    url: str  # with or without /chat/completions
    model: str
    key: str = field(default="", repr=False)  # bearer token; "" sends none
    timeout_s: float = 60.0  # of one request as a whole
    retries: int = 3  # after the first attempt
    backoff_s: float = 1.0  # before the first retry; it doubles with each
    max_failures: int = 5  # questions in a row, before the judge counts as down

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(
                f"VNIAH_JUDGE_URL must be an http(s) URL such as http://127.0.0.1:8000/v1, got {self.url!r}"
            )
        if not self.model:
            raise ValueError("VNIAH_JUDGE_URL is set but VNIAH_JUDGE_MODEL is not; name the model of that endpoint")
        if not 0 < self.timeout_s <= 1e6:
            raise ValueError(f"VNIAH_JUDGE_TIMEOUT must be a positive number of seconds, got {self.timeout_s}")
        if self.retries < 0 or self.backoff_s < 0 or self.max_failures < 1:
            raise ValueError(
                "a judge needs retries >= 0, backoff_s >= 0 and max_failures >= 1, "
                f"got {self.retries}, {self.backoff_s}, {self.max_failures}"
            )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> JudgeConfig | None:
        """The judge of ``VNIAH_JUDGE_{URL,MODEL,KEY,TIMEOUT,RETRIES}``; ``None`` when no URL is set (off)."""
        environ = os.environ if environ is None else environ
        names = ("URL", "MODEL", "KEY", "TIMEOUT", "RETRIES")
        given = {name: environ.get(f"VNIAH_JUDGE_{name}", "").strip() for name in names}
        if not given["URL"]:
            return None
        numbers: dict[str, Any] = {}
        for name, field_name, kind in (("TIMEOUT", "timeout_s", float), ("RETRIES", "retries", int)):
            try:
                numbers |= {field_name: kind(given[name])} if given[name] else {}
            except ValueError:
                raise ValueError(f"VNIAH_JUDGE_{name} must be a number, got {given[name]!r}") from None
        return cls(url=given["URL"], model=given["MODEL"], key=given["KEY"], **numbers)

    @property
    def endpoint(self) -> str:
        base = self.url.rstrip("/")
        return base if base.endswith("/chat/completions") else f"{base}/chat/completions"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one answer: ``scores`` by name, or ``None`` and the ``reason`` why it is unscored."""

    scores: Mapping[str, float] | None
    reason: str = ""
    reply: str = ""


class Judge:
    """Asks one endpoint.

    After ``max_failures`` questions in a row without a reply, or one permanent refusal (a wrong key or
    model), the judge counts as down and is asked no more: a dead endpoint costs a run minutes, not hours.
    """

    def __init__(self, config: JudgeConfig, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self.config = config
        self._sleep = sleep
        self._failures = 0
        self._down = ""

    def score(self, system: str, user: str, names: Sequence[str]) -> Verdict:
        """Ask for the scores ``names`` (each 1 to 5) of one answer; never raises for what the judge does."""
        if self._down:
            return Verdict(None, f"the judge is down: {self._down}")
        try:
            reply = self.ask(system, user)
        except JudgeError as error:
            self._failures += 1
            if error.permanent or self._failures >= self.config.max_failures:
                self._down = str(error)
            return Verdict(None, str(error))
        self._failures = 0
        try:
            return Verdict(parse_scores(reply, names), reply=reply)
        except ValueError as error:
            return Verdict(None, str(error), reply)

    def ask(self, system: str, user: str) -> str:
        """The text of the judge's reply, after retries with growing waits.

        Raises:
            JudgeError: no usable reply; ``permanent`` when the endpoint refuses such requests for good.
        """
        # The client's own retries know neither a limit on the whole of an answer nor an answer that makes no sense.
        for attempt in range(self.config.retries + 1):
            try:
                return self._answer(system, user)
            except JudgeError as error:
                if error.permanent or attempt == self.config.retries:
                    raise
                self._sleep(min(max(self.config.backoff_s * 2**attempt, error.wait_s), _MAX_WAIT_S))
        raise AssertionError("unreachable: the last attempt returns or raises")

    @functools.cached_property
    def _client(self) -> Any:
        import openai

        def leave_errors(response: Any) -> None:
            # Their status says enough, and the client would read them whole, however long.
            if not response.is_success:
                response.close()

        return openai.OpenAI(
            base_url=self.config.endpoint.removesuffix("/chat/completions"),
            api_key=self.config.key or "none",
            timeout=self.config.timeout_s,
            max_retries=0,
            # A judge that redirects is refused: the answer and the key are meant for the named host alone.
            http_client=openai.DefaultHttpxClient(follow_redirects=False, event_hooks={"response": [leave_errors]}),
        )

    def _answer(self, system: str, user: str) -> str:
        import openai

        create = self._client.chat.completions.with_streaming_response.create
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        headers = {} if self.config.key else {"Authorization": openai.Omit()}

        def read() -> bytes:
            with create(model=self.config.model, messages=messages, temperature=0, extra_headers=headers) as response:
                raw = bytearray()
                for chunk in response.iter_bytes():
                    raw += chunk
                    if len(raw) > _MAX_REPLY_BYTES:
                        raise JudgeError(f"the judge's answer is longer than {_MAX_REPLY_BYTES} bytes")
                return bytes(raw)

        try:
            # The client's limit is one read's: a judge that drips would keep it for ever.
            raw = within(self.config.timeout_s, read)
            content = parse_json(raw, "the judge's answer")["choices"][0]["message"]["content"]
        except JudgeError:
            raise
        except openai.APIStatusError as error:
            retry = error.status_code in _RETRY_STATUS or error.status_code >= 500
            wait_s = _seconds(error.response.headers.get("Retry-After", ""))
            raise JudgeError(
                f"the judge answered HTTP {error.status_code}", permanent=not retry, wait_s=wait_s
            ) from None
        except (openai.APITimeoutError, TimeoutError):
            raise JudgeError(f"the judge did not answer within {self.config.timeout_s:g} s") from None
        except openai.APIConnectionError as error:
            raise JudgeError(f"the judge cannot be reached: {error.__cause__ or error}") from None
        except (ValueError, LookupError, TypeError):
            raise JudgeError("the judge's answer is not a chat completion") from None
        except Exception as error:  # the HTTP library raises its own kinds for half an answer
            raise JudgeError(f"the judge's answer broke off: {type(error).__name__}") from None
        if not isinstance(content, str) or not content.strip():
            raise JudgeError("the judge's answer is empty")
        return content


def _seconds(text: str) -> float:
    try:
        return max(0.0, float(text))
    except ValueError:
        return 0.0


def parse_scores(reply: str, names: Sequence[str]) -> dict[str, float]:
    """The scores ``names``, each from 1 to 5, from the last JSON object of ``reply`` that has them all.

    Judges reason first and end with an object, with double or (as Python prints it) single quotes.

    Raises:
        ValueError: no such object, or a score that is no such number.
    """
    for text in reversed(re.findall(rf"\{{[^{{}}]{{0,{_MAX_OBJECT_CHARS}}}\}}", reply)):
        found = _object(text)
        if not all(name in found for name in names):
            continue
        scores = {}
        for name in names:
            try:
                scores[name] = math.nan if isinstance(found[name], bool) else float(found[name])
            except (TypeError, ValueError, OverflowError):
                scores[name] = math.nan
            if not 1 <= scores[name] <= 5:
                raise ValueError(f"the judge gave {name} = {reprlib.repr(found[name])}, expected a number from 1 to 5")
        return scores
    raise ValueError(f"the judge's reply has no JSON object with {', '.join(names)}: {reply[:200]!r}")


def _object(text: str) -> Mapping[str, Any]:
    """The object that a text is, as JSON or as Python; an empty one where it is none."""
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError, OverflowError):
            continue
        if isinstance(found, dict):
            return found
    return {}
