"""A conversation about a video or images: each question continues the cache of the ones before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from longva_model.engine.engine import TreeEngine
from longva_model.engine.leaves import LeafResult
from longva_model.prompts.prompting import build_prompt
from vniah.contract.requests import Generate, Segment, Text

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
        self.engine.cache = None
        self._shown: list[Segment] = []
        self._answer = ""

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return int(self.engine.cache.length) if self.engine.cache is not None else 0

    @torch.inference_mode()
    def ask(self, question: str, leaf: Generate, on_text: Callable[[str], None] | None = None) -> LeafResult:
        """Answer a question.

        Args:
            on_text: called with the answer so far after each token.

        Raises:
            ValueError: placeholders and visuals that do not match, or a context that is full (both lengths named).
        """
        template = self.engine.backend.template
        if not self._shown:
            prompt = build_prompt(question, self.visuals, leaf, template, max_frames=self.max_frames)
            self.engine.show(prompt)
            segments: tuple[Segment, ...] = prompt.request.segments
        else:
            segments = (Text(template.answer + self._answer), Text(template.between + question + template.post))
        new = self.engine.embedder.tokens(segments)
        limit = self.engine.backend.max_length
        if limit and self.length + new + leaf.max_new_tokens > limit:
            raise ValueError(
                f"the conversation would be {self.length + new + leaf.max_new_tokens} tokens and the context of "
                f"{self.engine.backend.name} is {limit}; start a new one, or show fewer frames"
            )
        if self.engine.cache is None:
            self.engine.cache = self.engine.new_cache(new + leaf.max_new_tokens + _ROOM)
        result = self.engine.answer(segments, leaf, on_text, self._shown)
        self._shown += segments
        self._answer = result.text
        return result
