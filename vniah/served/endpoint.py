"""One OpenAI-compatible endpoint, asked so that whatever it does is an answer or one line.

The ``openai`` client sends. What it lacks is here: a limit on the whole of a request and on the bytes of an answer,
errors included; no redirects, since prompt and key are meant for the named host alone; and retries that read a server's
wish, for answers that make no sense too.
"""

from __future__ import annotations

import functools
import random
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from vniah.files import parse_json
from vniah.hub import within
from vniah.notices import printable, shortened

_T = TypeVar("_T")
MAX_ANSWER_BYTES = 8 << 20
_MAX_ERROR_BYTES = 1 << 16
_MAX_WAIT_S = 60.0
# Worth another try: time-outs, conflicts, rate limits, and whatever goes wrong on the server's side.
_RETRY_STATUS = frozenset({408, 409, 425, 429})
_HINTS = (
    # What a server that refuses a request says of it, and what to do.
    (
        r"context[ _]?(?:length|window)|max(?:imum)?[ _]?(?:model|context|sequence)[ _]?len|too (?:long|many tokens)",
        "the prompt is longer than the server takes; serve with a longer context (vLLM --max-model-len, SGLang "
        "--context-length), or ask for fewer frames",
    ),
    (
        r"(?:images?|videos?|multi-?modal|mm)\b.{0,60}(?:at most|limit|maximum|too many|exceed)|"
        r"(?:at most|limit|maximum|too many|exceed).{0,60}(?:images?|videos?|multi-?modal)",
        "the server limits the images of a request; raise it (vLLM --limit-mm-per-prompt), or ask for fewer frames",
    ),
    (r"video_url", "the server takes no video; show frames as images (presentation=images)"),
    (r"insufficient_quota|billing", "the account has no money left"),
)


class EndpointError(ValueError):
    """The endpoint gave no answer.

    Attributes:
        permanent: asking again is pointless.
        status: of HTTP; 0 where there was none.
        wait_s: what the server asks to wait.
    """

    def __init__(self, message: str, *, permanent: bool = False, status: int = 0, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.permanent, self.status, self.wait_s = permanent, status, wait_s


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a server is and how patient to be.

    Attributes:
        url: the base, as in ``http://127.0.0.1:8000/v1``.
        key: bearer token; "" sends none.
        key_name: the variable that the key is read from, for errors.
        timeout_s: of one request as a whole, answer included.
        retries: after the first attempt.
        backoff_s: before the first retry; it doubles with each.
        who: what errors call it.

    Raises:
        ValueError: no http(s) URL, one with a password in it, or a number out of range.
    """

    url: str
    key: str = field(default="", repr=False)
    key_name: str = "OPENAI_API_KEY"
    timeout_s: float = 600.0
    retries: int = 5
    backoff_s: float = 1.0
    who: str = "the server"

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        # Before errors that would show them; results hold the URL too.
        if parts.username or parts.password:
            raise ValueError(f"base_url holds a user or password; take them out and set {self.key_name}")
        if parts.query or parts.fragment:
            raise ValueError(f"base_url goes on with ? or #; leave that out, and set {self.key_name} where it is a key")
        if parts.scheme not in ("http", "https") or not parts.hostname or not _has_port(self.url):
            raise ValueError(f"base_url must be an http(s) URL such as http://127.0.0.1:8000/v1, got {self.url!r}")
        if not (self.key.isascii() and self.key.isprintable()):
            raise ValueError(f"the key in {self.key_name} has characters that no header holds; set it anew")
        if not 0 < self.timeout_s <= 1e6 or self.retries < 0 or self.backoff_s < 0:
            raise ValueError(
                "an endpoint needs timeout > 0, retries >= 0 and backoff >= 0, "
                f"got {self.timeout_s:g}, {self.retries}, {self.backoff_s:g}"
            )

    def ask(
        self,
        path: str,
        body: Mapping[str, Any],
        read: Callable[[Mapping[str, Any]], _T],
        stopped: threading.Event | None = None,
    ) -> _T:
        """What ``read`` makes of the JSON object that a POST to ``path`` is answered with, after retries with growing
        waits.

        Args:
            path: behind ``url``, "chat/completions"; or a whole URL of the same host.
            body: the request, as JSON has it.
            read: raises ValueError for an object that is no answer.
            stopped: set from elsewhere, ends the waits and retries.

        Raises:
            EndpointError: no usable answer.
        """
        for attempt in range(self.retries + 1):
            try:
                return read(self.once(path, body))
            except ValueError as found:
                error = found if isinstance(found, EndpointError) else EndpointError(f"{self.who}: {found}")
                if error.permanent or attempt == self.retries or error.wait_s > self.timeout_s:
                    tries = f" (asked {attempt + 1} times)" if attempt else ""
                    asked = f"; it asks to wait {error.wait_s:g} s" if error.wait_s > self.timeout_s else ""
                    raise EndpointError(f"{error}{asked}{tries}", permanent=True, status=error.status) from None
                # Apart, so that many that failed together do not come back together.
                wait_s = max(min(self.backoff_s * 2**attempt, _MAX_WAIT_S) * random.uniform(0.75, 1.25), error.wait_s)
                if (stopped or threading.Event()).wait(wait_s):
                    raise error from None
        raise AssertionError("unreachable: the last attempt returns or raises")

    def models(self) -> list[Mapping[str, Any]] | None:
        """The models that it says to serve; ``None`` where it has no list.

        Raises:
            EndpointError: it cannot be asked.
        """
        try:
            told = self.once("models", None)
        except EndpointError as error:
            if error.status in (404, 405, 501):
                return None
            raise
        listed = told.get("data")
        if not isinstance(listed, list):
            return None
        return [one for one in listed if isinstance(one, Mapping) and isinstance(one.get("id"), str)]

    @functools.cached_property
    def _http(self) -> Any:
        import openai

        try:
            return openai.DefaultHttpxClient(
                follow_redirects=False, event_hooks={"response": [self._refuse]}, timeout=self.timeout_s
            )
        except (ImportError, ValueError) as error:  # a proxy that it cannot use
            said = f"{self.who} at {self.url} cannot be asked{_through(self.url)}: {error}"
            raise EndpointError(said, permanent=True) from None

    @functools.cached_property
    def _client(self) -> Any:
        import openai

        given: dict[str, Any] = {"api_key": self.key or "none", "timeout": self.timeout_s, "max_retries": 0}
        return openai.OpenAI(base_url=self.url, http_client=self._http, **given)

    def _sender(self, path: str, body: Mapping[str, Any] | None) -> Callable[[], Any]:
        """What sends a request, and gives the answer in a context, unread."""
        import openai

        headers: dict[str, Any] = {} if self.key else {"Authorization": openai.Omit()}
        if body is None:
            return functools.partial(self._client.models.with_streaming_response.list, extra_headers=headers)
        # As it is: the client would look through thousands of pictures for what is to be renamed.
        given = {"model": body["model"], "extra_body": dict(body), "extra_headers": headers}
        if path == "chat/completions":
            return functools.partial(self._client.chat.completions.with_streaming_response.create, messages=[], **given)
        if path == "completions":
            return functools.partial(self._client.completions.with_streaming_response.create, prompt="", **given)
        bearer = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return functools.partial(self._http.stream, "POST", path, json=dict(body), headers=bearer)

    def _refuse(self, response: Any) -> None:
        """Raise what an answer without success says; the client would read it whole, however long."""
        if response.is_success:
            return
        raw = _bounded(response.iter_bytes(), _MAX_ERROR_BYTES)
        response.close()
        status, said = response.status_code, _message(raw or b"")
        if 300 <= status < 400:
            to = repr(printable(shortened(response.headers.get("Location", ""), 100)))
            raise EndpointError(
                f"{self.who} redirects (HTTP {status}) to {to} and is not followed; give that address if you trust it",
                permanent=True,
                status=status,
            )
        quota = "insufficient_quota" in said
        retry = (status in _RETRY_STATUS and not quota) or status >= 500
        hint = next((f" ({hint})" for words, hint in _HINTS if re.search(words, said, re.IGNORECASE)), "")
        if status == 404 and "model" not in said.lower():
            hint = " (base_url ends before /chat/completions, mostly in /v1)"
        if status in (401, 403):
            hint = (
                f" (it refuses the key in {self.key_name})" if self.key else f" (set {self.key_name} to a key of its)"
            )
        raise EndpointError(
            f"{self.who} answered HTTP {status}{f': {said}' if said else ''}{hint}",
            permanent=not retry,
            status=status,
            wait_s=_seconds(response.headers.get("Retry-After", "")),
        )

    def once(self, path: str, body: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """As ``ask``, without retries; a GET where there is no body."""
        import openai

        send = self._sender(path, body)

        def read() -> bytes:
            with send() as response:
                raw = _bounded(response.iter_bytes(), MAX_ANSWER_BYTES)
            if raw is None:
                raise EndpointError(f"the answer of {self.who} is longer than {MAX_ANSWER_BYTES} bytes", permanent=True)
            return raw

        try:
            # The client's limit is one read's: a server that drips would keep it for ever.
            raw = within(self.timeout_s, read)
            told = parse_json(raw, f"the answer of {self.who}")
            if not isinstance(told, dict):
                raise ValueError("no object")
            if told.get("error"):  # of a gateway that had begun to answer
                raise EndpointError(f"{self.who} answered an error: {_message(raw)}")
            return told
        except EndpointError:
            raise
        except (openai.APITimeoutError, TimeoutError):
            raise EndpointError(f"{self.who} did not answer within {self.timeout_s:g} s") from None
        except openai.APIConnectionError as error:
            said = str(error.__cause__ or error)
            said += " (it speaks http, not https)" if "WRONG_VERSION_NUMBER" in said else ""
            raise EndpointError(f"{self.who} at {self.url} cannot be reached{_through(self.url)}: {said}") from None
        except ValueError:
            raise EndpointError(f"the answer of {self.who} is no JSON object") from None
        except Exception as error:  # the HTTP library raises its own kinds for half an answer
            raise EndpointError(f"the answer of {self.who} broke off: {type(error).__name__}") from None


def _has_port(url: str) -> bool:
    try:
        return urlsplit(url).port != 0
    except ValueError:
        return False


def _through(url: str) -> str:
    """Which variable sends requests to another host first; its value may hold a password."""
    parts, proxies = urlsplit(url), getproxies()
    name = next((one for one in (parts.scheme, "all") if proxies.get(one)), "")
    return f" through the proxy in {name.upper()}_PROXY" if name and not proxy_bypass(parts.netloc) else ""


def _bounded(chunks: Any, most: int) -> bytes | None:
    """All bytes, or ``None`` for more than ``most``."""
    raw = bytearray()
    for chunk in chunks:
        raw += chunk
        if len(raw) > most:
            return None
    return bytes(raw)


def _message(raw: bytes) -> str:
    """What the body of an error says, in one line that a terminal can show."""
    try:
        told: Any = parse_json(raw, "an error")
    except ValueError:
        told = "" if raw.lstrip().startswith(b"<") else raw.decode("utf-8", "replace")
    for key in ("error", "message", "detail"):
        if isinstance(told, Mapping) and key in told:
            code = told.get("code")
            told = told[key]
            if isinstance(code, str) and isinstance(told, str) and code not in told:
                told = f"{told} ({code})"
    return printable(shortened(" ".join(str(told or "").split()), 300))


def _seconds(text: str) -> float:
    try:
        return max(0.0, float(text))
    except ValueError:
        return 0.0
