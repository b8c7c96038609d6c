"""A conversation about a video or images: each question continues the cache of the ones before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from longva_model.engine.atoms import Lowered
from longva_model.engine.engine import TreeEngine
from longva_model.engine.leaves import LeafResult
from longva_model.prompts.prompting import Prompt, build_prompt
from vniah.contract.requests import Generate, Request, Text

# Tokens to plan for beside the first question with its visuals and answer; the cache grows past that when it must.
_ROOM = 4096


class Conversation:
    """Asks one model questions in turn; the visuals and earlier turns are computed once.

    Args:
        engine: an engine of the model, for this conversation alone.
        visuals: paths, PIL images or frames, shown with the first question.
        max_frames: frames sampled from each video.
    """

    def __init__(self, engine: TreeEngine, visuals: Sequence[Any], *, max_frames: int) -> None:
        self.engine = engine
        self.visuals = list(visuals)
        self.max_frames = max_frames
        self.engine.state = None
        self._prompt: Prompt | None = None
        self._lowered: Lowered | None = None
        self._answer = ""

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return int(self.engine.state.length) if self.engine.state is not None else 0

    @torch.inference_mode()
    def ask(self, question: str, leaf: Generate, on_text: Callable[[str], None] | None = None) -> LeafResult:
        """Answer a question.

        Args:
            on_text: called with the answer so far after each token.

        Raises:
            ValueError: placeholders and visuals that do not match, or a context that is full (both lengths named).
        """
        engine, backend = self.engine, self.engine.backend
        template = backend.template
        if self._prompt is None:
            prompt = build_prompt(question, self.visuals, leaf, template, max_frames=self.max_frames)
        else:
            more = (Text(template.answer + self._answer), Text(template.between + question + template.post))
            prompt = replace(self._prompt, request=Request((*self._prompt.request.segments, *more), leaf))
        lowered = backend.lower(prompt, engine.table, engine.options.preprocess)
        limit = backend.max_length
        if limit and lowered.tokens + leaf.max_new_tokens > limit:
            raise ValueError(
                f"the conversation would be {lowered.tokens + leaf.max_new_tokens} tokens and the context of "
                f"{backend.name} is {limit}; start a new one, or show fewer frames"
            )
        if engine.state is None:
            engine.state = engine.new_state(lowered.tokens + leaf.max_new_tokens + _ROOM)
        result = engine.answer(lowered, 0 if self._lowered is None else len(self._lowered), leaf, on_text)
        self._prompt, self._lowered, self._answer = prompt, lowered, result.text
        return result
