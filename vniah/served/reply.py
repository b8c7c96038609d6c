"""What a server's answer says, and whether it begins with the right one.

Every token of an answer is the argmax under teacher forcing exactly when greedy decoding begins with the answer's
tokens: so the paper's score needs greedy tokens alone. By what they are compared, the best that a server tells:

- ``token ids``: its own, and the answer's by its own tokenizer. This is the paper's score.
- ``tokens``: the pieces of text that stand beside log-probabilities. The answer must end where a token ends, so that
  "Pandas" of "Pand" and "as" does not begin with "Panda". Another cut of the same text is taken for the same.
- ``text of as many tokens``: of as many as the answer has, by a tokenizer that the user names. As the one above.
- ``text``: nothing else is known. The text must begin with the answer and not go on inside its last word. Beside that
  other cut, a first token with a space before it may read like one without, and a special token is not seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vniah.runs.scoring import begins_with, begins_with_text
from vniah.runs.task import Answer

_THINK = ("<think>", "</think>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One choice of a completion.

    Attributes:
        text: as it came.
        failure: why it is no answer: "refused", "empty", "still thinking", or "" where it is one.
        thinks: thoughts come before the answer, in the text or beside it.
        token_ids: that were generated, where the server tells; empty otherwise.
        pieces: their bytes, and ``logprobs`` with them.
        prompt_tokens, cached_tokens, answer_tokens: of the usage; ``None`` where not told.
        model: what the server calls itself.
    """

    text: str
    failure: str = ""
    thinks: bool = False
    token_ids: tuple[int, ...] = ()
    pieces: tuple[bytes, ...] = ()
    logprobs: tuple[float, ...] = ()
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    answer_tokens: int | None = None
    model: str = ""

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> Reply:
        """From the JSON of a completion, of chat or of text.

        Raises:
            ValueError: it is none.
        """
        choices = told.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
            raise ValueError("the answer has no choice")
        choice = choices[0]
        message = _object(choice.get("message"))
        refusal = message.get("refusal")
        text = choice.get("text") if "text" in choice else message.get("content")
        if text is not None and not isinstance(text, str):
            raise ValueError(f"the answer is {type(text).__name__} and no text")
        usage = _object(told.get("usage"))
        details = _object(usage.get("prompt_tokens_details"))
        pieces, logprobs = _logprobs(choice.get("logprobs"))
        ids = whole_numbers(choice.get("token_ids")) or ()
        answer_tokens = _count(usage.get("completion_tokens"))
        if answer_tokens is not None and abs(len(ids) - answer_tokens) > 1:
            ids = ()  # not those of the whole answer
        failure = ""
        begun = (text or "").strip()[: len(_THINK[0])]
        in_text = len(begun) > 1 and _THINK[0].startswith(begun)  # a forced answer may end within the word
        thinks = in_text or bool(message.get("reasoning_content") or message.get("reasoning"))
        if refusal or choice.get("finish_reason") == "content_filter":
            failure, text = "refused", text or str(refusal or "")
        elif not (text or "").strip():
            failure = "still thinking" if thinks else "empty"
        elif in_text and _THINK[1] not in (text or ""):
            failure = "still thinking"
        return cls(
            text=text or "",
            failure=failure,
            thinks=thinks,
            token_ids=ids,
            pieces=pieces,
            logprobs=logprobs,
            prompt_tokens=_count(usage.get("prompt_tokens")),
            cached_tokens=_count(details.get("cached_tokens")),
            answer_tokens=answer_tokens,
            model=str(told.get("model") or ""),
        )

    @property
    def said(self) -> str:
        """A free answer, without the thoughts before it."""
        return (self.text.partition(_THINK[1])[2] if self.text.lstrip().startswith(_THINK[0]) else self.text).strip()

    def forced(self, answer: str, answer_ids: Sequence[int], *, cut: bool = False) -> tuple[Answer, str]:
        """As an answer under teacher forcing, and by what it was compared.

        Args:
            answer: the right one.
            answer_ids: its tokens by the server's tokenizer; empty where not known.
            cut: as many tokens as those were asked for, and no more.
        """
        count = len(answer_ids)
        told: dict[str, Any] = {"text": self.text, "prompt_tokens": self.prompt_tokens}
        if self.failure == "empty" and (self.token_ids or self.answer_tokens):
            # The model ended at once, or wrote what cannot be seen: an answer, and not this one.
            told["unanswered"] = ""
        else:
            told["unanswered"] = self.failure
        if self.token_ids and count:
            right = begins_with(self.token_ids, answer_ids)
            told |= {"predicted_ids": self.token_ids[:count], "answer_ids": tuple(answer_ids)}
            logprobs = self.logprobs[:count] if right and len(self.logprobs) == len(self.token_ids) else ()
            return Answer(is_greedy=right, answer_logprobs=logprobs, **told), "token ids"
        if self.pieces:
            wanted, used, come = answer.encode(), 0, b""
            while len(come) < len(wanted) and used < len(self.pieces):
                come += self.pieces[used]
                used += 1
            right = come == wanted
            return Answer(is_greedy=right, answer_logprobs=self.logprobs[:used] if right else (), **told), "tokens"
        if cut and count:
            return Answer(is_greedy=self.text == answer, **told), "text of as many tokens"
        return Answer(is_greedy=begins_with_text(self.text, answer), **told), "text"


def _logprobs(told: Any) -> tuple[tuple[bytes, ...], tuple[float, ...]]:
    """Tokens as bytes with their log-probabilities, of chat or of text; nothing where they are not whole."""
    if not isinstance(told, Mapping):
        return (), ()
    content = told.get("content")
    if isinstance(content, list):
        tokens = [
            (one.get("bytes"), one.get("token"), one.get("logprob")) for one in content if isinstance(one, Mapping)
        ]
    else:
        names, values = told.get("tokens"), told.get("token_logprobs")
        if not isinstance(names, list) or not isinstance(values, list) or len(names) != len(values):
            return (), ()
        tokens = [(None, name, value) for name, value in zip(names, values, strict=True)]
    pieces, numbers = [], []
    for raw, token, logprob in tokens:
        if not isinstance(token, str) or not isinstance(logprob, (int, float)) or isinstance(logprob, bool):
            return (), ()
        octets = whole_numbers(raw)
        # Half a character without its bytes is nothing to compare.
        if octets is None and "\ufffd" in token:
            return (), ()
        pieces.append(token.encode("utf-8", "replace") if octets is None else bytes(one % 256 for one in octets))
        numbers.append(float(logprob))
    return tuple(pieces), tuple(numbers)


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def whole_numbers(values: Any) -> tuple[int, ...] | None:
    """A list of whole numbers; ``None`` for anything else."""
    return tuple(values) if isinstance(values, list) and all(type(one) is int for one in values) else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
