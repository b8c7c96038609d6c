"""A conversation about a video or images: each question goes on from what was computed for the ones before it.

Where a model's own chat template writes the prompt, a follow-up is the whole conversation written anew, and may differ
from the prompt before it in places (a template may leave out what was thought). So the state goes back to the last
place that both have in common, and the rest is fed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from longva_model.engine.atoms import Lowered, PrefixTree
from longva_model.engine.engine import TreeEngine
from longva_model.engine.leaves import LeafResult
from longva_model.prompts.prompting import Prompt
from vniah.contract.requests import Generate

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
        # Places that the state goes back to: how many of the prompt's atoms stand before, and the state's mark.
        self._marks: list[tuple[int, Any]] = []

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
        if self._prompt is None:
            prompt = backend.question(question, self.visuals, leaf, max_frames=self.max_frames)
        else:
            prompt = backend.follow_up(self._prompt, self._answer, question, leaf)
        lowered = backend.lower(prompt, engine.table, engine.options.preprocess)
        limit = backend.max_length
        if limit and lowered.tokens + leaf.max_new_tokens > limit:
            raise ValueError(
                f"the conversation would be {lowered.tokens + leaf.max_new_tokens} tokens and the context of "
                f"{backend.name} is {limit}; start a new one, or show fewer frames"
            )
        if engine.state is None:
            engine.state = engine.new_state(lowered.tokens + leaf.max_new_tokens + _ROOM)
            self._marks = [(0, engine.state.mark())]
        start = self._go_back(lowered)
        visual_A = np.flatnonzero(lowered.atoms_A < 0)
        seen = int(visual_A[-1]) + 1 if len(visual_A) else 0
        if start < seen < len(lowered):
            self._marks.append((seen, engine.feed(lowered, start, seen)))
            start = seen
        result = engine.answer(lowered, start, leaf, on_text)
        self._marks.append((len(lowered), engine.state.mark()))
        self._prompt, self._lowered, self._answer = prompt, lowered, result.text
        return result

    def _go_back(self, lowered: Lowered) -> int:
        """Take the state back to the last mark up to which ``lowered`` is the prompt before; how many atoms that is."""
        alike = 0
        if self._lowered is not None:
            alike = PrefixTree(()).common(self._lowered, lowered, 0, len(lowered) - 1)
        while self._marks[-1][0] > alike:
            self._marks.pop()
        start, mark = self._marks[-1]
        self.engine.state.rewind(mark)
        return start
