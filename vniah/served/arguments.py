"""What a user may set of a served model: checked once, where it enters."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from vniah.notices import did_you_mean
from vniah.served.content import FORMATS
from vniah.served.endpoint import Endpoint

PREFIX = "openai:"
_OPENAI = "https://api.openai.com/v1"
_SWITCH = {"1": True, "true": True, "0": False, "false": False}
_CHOICES = {"presentation": ("auto", "images", "video"), "image_format": FORMATS, "thinking": ("auto", "on", "off")}
# What lmms-eval adds to the arguments of every model.
_FROM_LMMS_EVAL = ("batch_size", "max_batch_size", "device", "use_cache")


class Prices(NamedTuple):
    """Money for a million tokens: of a prompt, of an answer, and of what the server's cache had of a prompt."""

    prompt: float
    answer: float
    cached: float

    def of(self, prompt_tokens: int, answer_tokens: int, cached_tokens: int = 0) -> float:
        """What so many tokens cost; the cached ones are among those of the prompt."""
        whole = (prompt_tokens - cached_tokens) * self.prompt + cached_tokens * self.cached
        return (whole + answer_tokens * self.answer) / 1e6


@dataclass(frozen=True, kw_only=True)
class ServedArgs:
    """Arguments of a model behind a server.

    The key is read from the environment and never an argument, since arguments stand in results.
    """

    model: str  # as the server calls it
    base_url: str = ""  # OPENAI_BASE_URL, else OpenAI's own
    api_key_env: str = "OPENAI_API_KEY"  # the variable that the key is in
    concurrency: int = 8  # requests at a time
    timeout: float = 600.0  # seconds of one request as a whole
    retries: int = 5  # after a request that may go better another time
    # Of a film: images, each frame one, or video, an mp4; auto is VNIAH_PRESENTATION, else images.
    presentation: str = "auto"
    timestamps: bool = False  # the seconds of each frame stand before it, as text
    image_format: str = "png"  # of frames: png loses nothing, jpeg is smaller
    # Folder or Hub id of its tokenizer, where the server tells text alone: how many tokens an answer has.
    answer_tokenizer: str = ""
    thinking: str = "auto"  # on or off is told to the server's chat template
    self_check: bool = True  # ask one short question three times: greedy answers are alike
    price_in: float | None = None  # money for a million tokens of prompts
    price_out: float | None = None  # of answers
    price_cached: float | None = None  # of prompts that the server's cache had; as price_in unless given
    budget: float | None = None  # the run ends before more is spent

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> ServedArgs:
        """From texts or values.

        Raises:
            ValueError: naming an argument that is none, or a value that cannot be.
        """
        known = {one.name: str(one.type) for one in fields(cls)}
        read: dict[str, Any] = {}
        for key, value in given.items():
            if key in _FROM_LMMS_EVAL or value is None:
                continue
            if key == "api_key":
                raise ValueError("api_key is no argument, since results hold arguments; set OPENAI_API_KEY")
            if key not in known:
                hint = did_you_mean(key, known) or f"; expected one of {', '.join(known)}"
                raise ValueError(f"unknown argument {key}={value!r} of a served model{hint}")
            read[key] = _convert(key, known[key], value)
        if not str(read.get("model", "")).strip():
            raise ValueError(f"a served model needs its name: --model {PREFIX}NAME")
        args = cls(**read)
        for key, choices in _CHOICES.items():
            if getattr(args, key) not in choices:
                raise ValueError(f"{key}={getattr(args, key)!r}: expected one of {', '.join(choices)}")
        prices = args.prices
        if args.budget is not None and prices is None:
            raise ValueError("a budget needs prices: price_in=...,price_out=... (money for a million tokens)")
        args.endpoint()
        return args

    @property
    def prices(self) -> Prices | None:
        """``None`` where none were given."""
        if self.price_in is None and self.price_out is None:
            if self.price_cached is not None:
                raise ValueError("price_cached goes with price_in and price_out")
            return None
        paid = self.price_in or 0.0
        return Prices(paid, self.price_out or 0.0, paid if self.price_cached is None else self.price_cached)

    def endpoint(self) -> Endpoint:
        """Where the server is; ValueError for what is no URL."""
        key = os.environ.get(self.api_key_env, "").strip()
        url = self.base_url.strip() or os.environ.get("OPENAI_BASE_URL", "").strip() or _OPENAI
        return Endpoint(
            url=url.rstrip("/"),
            key=key,
            key_name=self.api_key_env,
            timeout_s=self.timeout,
            retries=self.retries,
        )

    def about(self) -> str:
        """Those that were given, as lmms-eval would have been given them."""
        given = {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) != one.default}
        return ",".join(f"{key}={value}" for key, value in {**given, "base_url": self.endpoint().url}.items())


def _convert(key: str, kind: str, value: Any) -> Any:
    if kind == "str":
        return str(value)
    if kind == "bool":
        if str(value).lower() not in _SWITCH:
            raise ValueError(f"{key}={value!r}: expected 1 or 0")
        return _SWITCH[str(value).lower()]
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{key}={value!r}: expected a number") from None
    least = 0.0 if key.startswith("price") or key == "retries" else 1.0 if kind == "int" else 1e-9
    if not least <= number < 1e9 or (kind == "int" and number != int(number)):
        what = "a whole number" if kind == "int" else "a number"
        raise ValueError(f"{key}={value!r}: expected {what} {'of 0 or more' if least == 0 else 'above 0'}")
    return int(number) if kind == "int" else number
