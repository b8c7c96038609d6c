"""The executor: walks a ``RequestTree`` depth-first with one croppable KV cache.

Each shared prefix is computed once: extend the cache along a branch, score the leaves there, crop back
to where the branch began. Prefill goes in chunks; logits are made at answer positions only. The plain
way (one forward a request, no cache) stands beside it as its reference.

Shapes: T tokens, D hidden size, V vocabulary, L answer tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from longva_model.backends.backend import Backend
from longva_model.engine.kv import CroppableCache
from longva_model.engine.leaves import LeafResult, beam_search, generate_ids, score_answer
from longva_model.engine.logits import NotFiniteError, not_finite
from longva_model.engine.segments import Embedder, rechunk
from longva_model.engine.steps import Step, steps
from longva_model.frames.embeddings import FrameEmbeddings
from longva_model.prompts.prompting import Prompt
from longva_model.renamed import cache_keyword
from vniah.contract.cost import answer_flops, answer_tokens
from vniah.contract.requests import Generate, Request, RequestTree, Segment, Target

OnResult = Callable[[int, LeafResult], None]
OnFlops = Callable[[int], None]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How a tree is run.

    Attributes:
        chunk_tokens: prefill at most so many tokens a forward; bounds activation memory.
        preprocess: "pad" or "crop" for every frame, or "auto": what each visual asks for.
    """

    chunk_tokens: int = 8192
    preprocess: str = "auto"

    def __post_init__(self) -> None:
        if self.chunk_tokens < 1:
            raise ValueError(f"chunk_tokens must be positive, got {self.chunk_tokens}")
        if self.preprocess not in ("auto", "pad", "crop"):
            raise ValueError(f"preprocess must be auto, pad or crop, got {self.preprocess!r}")


class TreeEngine:
    """Runs request trees on a backend.

    Args:
        backend: the model.
        frames: frame embeddings (see ``embeddings.py``).
        options: chunking and preprocessing.
    """

    # Of those that walk one tree together.
    rank = 0
    world_size = 1

    def __init__(self, backend: Backend, frames: FrameEmbeddings, options: EngineOptions | None = None) -> None:
        self.backend = backend
        self.options = options or EngineOptions()
        self.embedder = Embedder(backend, frames, self.options.preprocess)
        self.requests: Sequence[Request] = ()
        self.cache: Any = None
        self.peak_kv_bytes = 0

    @torch.inference_mode()
    def run(
        self,
        tree: RequestTree,
        media: Mapping[str, Any] | None = None,
        on_result: OnResult | None = None,
        on_flops: OnFlops | None = None,
        known: Mapping[int, LeafResult] | None = None,
    ) -> list[LeafResult]:
        """Score every leaf; results in the order of the tree's requests.

        Args:
            media: maps segment sources to frames, images or token lists (see ``vniah.contract.sources.Visual``);
                those of the prompts that were shown, if left out.
            on_result: called with (request index, result) as each leaf is done.
            on_flops: called with the FLOPs of each finished step.
            known: results of an earlier run, by request index. They are not computed again, and what is
                computed is what that run would have, to the bit.

        Raises:
            ValueError: an empty answer, or a source that the media do not name.
        """
        if media is not None:
            self.embedder.media = dict(media)
        self.requests = tree.requests
        for request in tree.requests:
            if isinstance(request.leaf, Target) and not self.backend.token_ids(request.leaf.text):
                raise ValueError(f"the answer {request.leaf.text!r} has no tokens; give a non-empty answer")
        results: dict[int, LeafResult] = dict(known or {})
        self.embedder.frames.expect(request for index, request in enumerate(tree.requests) if index not in results)

        def done(index: int, result: LeafResult) -> None:
            results[index] = result
            if on_result is not None:
                on_result(index, result)

        self._walk(tree, results, done, on_flops)
        return [results[index] for index in range(len(tree.requests))]

    def planned_flops(self, tree: RequestTree, known: Collection[int] = ()) -> int:
        """What ``run`` will tell ``on_flops`` in all; the media must be known (see ``show``)."""
        shape = self.backend.shape
        return sum(step.flops(shape, self._count) for step in steps(tree, self.embedder.segment_tokens, known))

    def _walk(self, tree: RequestTree, known: Mapping[int, LeafResult], done: OnResult, tick: OnFlops | None) -> None:
        """Compute what is not known, depth-first in one cache."""
        count = self.embedder.segment_tokens
        room = max((answer_tokens(request.leaf, self._count) for request in tree.requests), default=0)
        longest = max((step.past + step.new for step in steps(tree, count)), default=0)
        self.check_reach(longest)
        self.cache = self.new_cache(longest + room)
        # ``starts[depth]`` is the cache length at which a node at that depth begins.
        starts: list[int] = [0]
        for step in steps(tree, count, set(known)):
            del starts[step.depth + 1 :]
            self.cache.crop_to(starts[step.depth])
            end = self._finish(step, done)
            starts += [end] * len(step.segments)
            if tick is not None:
                tick(step.flops(self.backend.shape, self._count))
        self.peak_kv_bytes = max(self.peak_kv_bytes, self.cache.num_bytes)
        self.cache = None

    def _count(self, text: str) -> int:
        return len(self.backend.token_ids(text))

    def new_cache(self, room: int) -> Any:
        return CroppableCache(self.backend.shape.layers, room)

    def show(self, prompt: Prompt) -> None:
        """Make a prompt's media known, and how their frames are fitted."""
        self.embedder.media.update(prompt.media)
        self.embedder.source_preprocess.update(prompt.preprocess)
        self.embedder.videos.update(prompt.videos)

    def answer(
        self,
        segments: Sequence[Segment],
        leaf: Generate,
        on_text: Callable[[str], None] | None = None,
        before: Sequence[Segment] = (),
    ) -> LeafResult:
        """Continue the cache by segments and generate; the cache then ends where the answer begins.

        Args:
            before: the segments that the cache holds.
        """
        last_1D = self._extend(segments)
        end = self.cache.length
        result = self._generate(leaf, last_1D, [*before, *segments], on_text)
        self.cache.crop_to(end)
        return result

    def check_length(self, request: Request) -> None:
        """Refuse a prompt that the model was not made for; nothing is ever cut.

        Raises:
            ValueError: naming both lengths.
        """
        limit, answer = self.backend.max_length, answer_tokens(request.leaf, self._count)
        prompt = self.embedder.tokens(request.segments)
        if limit and prompt + answer > limit:
            raise ValueError(
                f"a prompt of {prompt} tokens and {answer} for its answer does not fit the context of {limit} tokens "
                f"of {self.backend.name}; show fewer frames (max_frames_num), ask for fewer new tokens, or pass "
                "max_length=N to go beyond what the checkpoint states"
            )

    def _finish(self, step: Step, done: OnResult) -> int:
        """Extend the cache by a step and score the leaves at its end; returns the prompt's length."""
        lone = step.node.leaves[0][1] if len(step.node.leaves) == 1 and not step.node.children else None
        # A target that is the only leaf rides in the same forward; the walk crops its tokens away with the branch.
        ahead = self.backend.token_ids(lone.text)[:-1] if isinstance(lone, Target) else []
        hidden_LD = self._extend(step.segments, ahead, keep=len(ahead) + 1)
        end: int = self.cache.length - len(ahead)
        if isinstance(lone, Target):
            index = step.node.leaves[0][0]
            done(index, self._target(lone, hidden_LD, end, self.requests[index].segments))
            return end
        scored: dict[Target | Generate, LeafResult] = {}
        for index, leaf in step.leaves:
            if leaf not in scored:
                prompt = self.requests[index].segments
                if isinstance(leaf, Target):
                    forced = self.backend.token_ids(leaf.text)[:-1]
                    rest = [self._extend((), forced, keep=len(forced))] if forced else []
                    scored[leaf] = self._target(leaf, torch.cat([hidden_LD, *rest]), end, prompt)
                else:
                    scored[leaf] = self._generate(leaf, hidden_LD, prompt)
                self.cache.crop_to(end)
            done(index, scored[leaf])
        return end

    def _target(
        self, leaf: Target, hidden_LD: torch.Tensor, prompt_tokens: int, prompt: Sequence[Segment]
    ) -> LeafResult:
        """Score an answer from the hidden states that predict its tokens."""
        answer = self.backend.token_ids(leaf.text)
        scored: tuple[list[int], list[float]] | None
        try:
            scored = score_answer(self.backend.logits(hidden_LD), answer)
        except NotFiniteError:
            scored = None
        scored = self.agree(scored)
        if scored is None:
            raise self.not_finite(prompt, answer[:-1])
        predicted, logprobs = scored
        return LeafResult(
            text=self.backend.decode(predicted),
            predicted_ids=predicted,
            answer_ids=answer,
            answer_logprobs=logprobs,
            prompt_tokens=prompt_tokens,
        )

    def _generate(
        self,
        leaf: Generate,
        last_1D: torch.Tensor,
        prompt: Sequence[Segment],
        on_token: Callable[[str], None] | None = None,
    ) -> LeafResult:
        """Generate behind the cache, which holds ``prompt`` and whose last hidden state is at hand."""
        prompt_tokens = self.cache.length

        def step(token: int) -> torch.Tensor:
            return self.backend.logits(self._extend((), [token]))[-1]

        try:
            if leaf.num_beams > 1:
                text, ids = self._search(leaf, prompt)
                if on_token is not None:
                    on_token(text)
            else:
                text, ids = generate_ids(
                    leaf,
                    self.backend.logits(last_1D)[-1],
                    step,
                    self.backend,
                    on_token,
                    set(self.embedder.prompt_ids(prompt)) if leaf.repetition_penalty != 1.0 else (),
                    self.agree,
                )
        except NotFiniteError as error:
            raise self.not_finite(prompt, error.ids) from None
        return LeafResult(text=text, predicted_ids=ids, answer_ids=[], answer_logprobs=[], prompt_tokens=prompt_tokens)

    def agree(self, value: T) -> T:
        """What all processes that walk a tree in step take for ``value``; here there is one."""
        return value

    def not_finite(self, prompt: Sequence[Segment], ids: Sequence[int]) -> ValueError:
        """The error for NaN or infinite logits behind a prompt and ``ids``; uses the cache up. Collective."""

        def rerun() -> None:
            self.cache = self.new_cache(self.embedder.tokens(prompt) + len(ids))
            self._extend(prompt, ids)

        return not_finite(self.backend, self.embedder.stream(prompt, ids), rerun)

    def _search(self, leaf: Generate, prompt: Sequence[Segment]) -> tuple[str, list[int]]:
        """Beam search by transformers, with a cache of its own: beams part, and this one holds a single sequence."""
        embeds_TD = torch.cat(list(self.embedder.stream(prompt)))
        return beam_search(leaf, self.backend, embeds_TD, self.embedder.prompt_ids(prompt))

    def _extend(self, segments: Sequence[Segment], ids: Sequence[int] = (), keep: int = 1) -> torch.Tensor:
        """Append segments and then ids to the cache; returns the last ``keep`` hidden states, (keep, D)."""
        tail: list[torch.Tensor] = []
        for chunk_TD in rechunk(self.embedder.stream(segments, ids), self.options.chunk_tokens):
            tail = [torch.cat([*tail, self.hidden(chunk_TD, keep)])[-keep:]]
        return tail[0]

    def hidden(self, chunk_TD: torch.Tensor, keep: int) -> torch.Tensor:
        """One forward of new tokens behind the cache; their last ``keep`` hidden states, (at most keep, D).

        Raises:
            ValueError: more tokens than the model gives the same states for in parts as in one forward.
        """
        start = self.cache.length
        self.check_reach(start + len(chunk_TD))
        positions_T = torch.arange(start, start + len(chunk_TD), device=chunk_TD.device)
        return self._decode(chunk_TD, positions_T, self.cache)[-keep:]

    def _decode(self, embeds_TD: torch.Tensor, positions_T: torch.Tensor, cache: Any) -> torch.Tensor:
        """The decoder's hidden states of new tokens behind a cache, or of a whole prompt without one, (T, D)."""
        given = {} if cache is None else {cache_keyword(self.backend.decoder): cache}
        out = self.backend.decoder(
            inputs_embeds=embeds_TD[None], position_ids=positions_T[None], use_cache=cache is not None, **given
        )
        hidden_TD: torch.Tensor = out.last_hidden_state[0]
        return hidden_TD

    def check_reach(self, tokens: int, *, in_parts: bool = True) -> None:
        """Refuse a prompt beyond a model's positions, or beyond what it may be given in parts.

        Raises:
            ValueError: naming both numbers.
        """
        model = self.backend
        if model.positions_until is not None and tokens > model.positions_until:
            raise ValueError(
                f"{model.name} has learned positions for {model.positions_until:,} tokens and cannot be run on "
                f"{tokens:,}; ask for shorter prompts"
            )
        if in_parts and model.chunked_until is not None and tokens > model.chunked_until:
            raise ValueError(
                f"{model.name} cannot be run on {tokens:,} tokens in parts: beyond {model.chunked_until:,} its RoPE "
                "has other frequencies for all of them; ask for shorter prompts, or, where answers are forced, for "
                "scoring=plain"
            )


class PlainEngine(TreeEngine):
    """Scores each request on its own. Generation leaves have a cache of their own, unshared."""

    def planned_flops(self, tree: RequestTree, known: Collection[int] = ()) -> int:
        return sum(self._flops(request) for index, request in enumerate(tree.requests) if index not in known)

    def _flops(self, request: Request) -> int:
        prompt, shape = self.embedder.tokens(request.segments), self.backend.shape
        return shape.forward_flops(prompt) + answer_flops(request.leaf, prompt, shape, self._count)

    def _walk(self, tree: RequestTree, known: Mapping[int, LeafResult], done: OnResult, tick: OnFlops | None) -> None:
        for index in [index for index in range(len(tree.requests)) if index not in known]:
            request = tree.requests[index]
            done(index, self._score(request))
            if tick is not None:
                tick(self._flops(request))
        self.cache = None

    def _score(self, request: Request) -> LeafResult:
        leaf = request.leaf
        if isinstance(leaf, Target):
            forced = self.backend.token_ids(leaf.text)[:-1]
            embeds_TD = torch.cat(list(self.embedder.stream(request.segments, forced)))
            self.check_reach(len(embeds_TD), in_parts=False)
            hidden_TD = self._decode(embeds_TD, torch.arange(len(embeds_TD), device=embeds_TD.device), None)
            prompt = len(embeds_TD) - len(forced)
            return self._target(leaf, hidden_TD[prompt - 1 :], prompt, request.segments)
        self.cache = self.new_cache(self.embedder.tokens(request.segments) + leaf.max_new_tokens)
        return self._generate(leaf, self._extend(request.segments), request.segments)
