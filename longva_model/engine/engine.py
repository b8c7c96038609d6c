"""The executor: walks a tree of prompts depth-first with one state that is marked and rewound.

Each shared prefix is computed once: extend the state along a branch, score the leaves there, rewind to where the
branch began. Prefill goes in chunks; logits are made at answer positions only. The plain way (one forward a request,
no cache) stands beside it as its reference.

Shapes: T tokens, D hidden size, V vocabulary, L answer tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from longva_model.backends.backend import Backend
from longva_model.engine.atoms import AtomTable, Lowered, PrefixTree
from longva_model.engine.chunks import Chunk, Feeder
from longva_model.engine.leaves import LeafResult, beam_search, generate_ids, score_answer
from longva_model.engine.logits import NotFiniteError, not_finite
from longva_model.engine.steps import Step, steps
from longva_model.frames.embeddings import FrameEmbeddings, reach
from longva_model.prompts.prompting import Prompt
from longva_model.run import processes
from longva_model.run.sharing import SharedFrames
from vniah.contract.cost import answer_flops, answer_tokens
from vniah.contract.requests import Generate, Leaf, Target
from vniah.runs.profiling import part

OnResult = Callable[[int, LeafResult], None]
OnFlops = Callable[[int], None]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How a tree is run.

    Attributes:
        chunk_tokens: prefill at most so many tokens a forward and process, or one visual unit; bounds activation
            memory. Processes that share a sequence take as many times more together.
        preprocess: "pad" or "crop" for every frame, or "auto": what each visual asks for.
    """

    chunk_tokens: int = 8192
    preprocess: str = "auto"

    def __post_init__(self) -> None:
        if self.chunk_tokens < 1:
            raise ValueError(f"chunk_tokens must be positive, got {self.chunk_tokens}")
        if self.preprocess not in ("auto", "pad", "crop"):
            raise ValueError(f"preprocess must be auto, pad or crop, got {self.preprocess!r}")


class Batch:
    """Prompts that are run together, as atoms and as the tree that they make."""

    def __init__(self, prompts: Sequence[Prompt], lowered: Sequence[Lowered], table: AtomTable) -> None:
        self.prompts = list(prompts)
        self.lowered = list(lowered)
        self.table = table
        self.leaves = [prompt.request.leaf for prompt in prompts]
        self.tree = PrefixTree(lowered)


class TreeEngine:
    """Runs prompts on a backend.

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
        # The processes that hold this model together walk in step, and each frame is encoded by one of them.
        self.group = backend.tensor_group
        self.feeder = Feeder(backend, frames if self.group is None else SharedFrames(frames, self.group))
        self.table = AtomTable()
        self.state: Any = None
        self.peak_kv_bytes = 0

    def lower(self, prompts: Sequence[Prompt]) -> Batch:
        """Prompts as atoms.

        Raises:
            ValueError: an answer without tokens, a prompt that the model was not made for (nothing is ever cut), or a
                source that its media do not hold.
        """
        table = AtomTable()
        table.meet(item for prompt in prompts for item in prompt.media.values())
        lowered = []
        for prompt in prompts:
            leaf = prompt.request.leaf
            if isinstance(leaf, Target) and not self.backend.token_ids(leaf.text):
                raise ValueError(f"the answer {leaf.text!r} has no tokens; give a non-empty answer")
            lowered.append(self.backend.lower(prompt, table, self.options.preprocess))
            if not len(lowered[-1]):
                raise ValueError("a prompt has no tokens; ask something")
            limit, answer = self.backend.max_length, answer_tokens(leaf, self._count)
            if limit and not prompt.beyond_context and lowered[-1].tokens + answer > limit:
                raise ValueError(
                    f"a prompt of {lowered[-1].tokens} tokens and {answer} for its answer does not fit the context of "
                    f"{limit} tokens of {self.backend.name}; show fewer frames (max_frames_num), ask for fewer new "
                    "tokens, or pass max_length=N to go beyond what the checkpoint states"
                )
        return Batch(prompts, lowered, table)

    @torch.inference_mode()
    def run(
        self,
        prompts: Batch | Sequence[Prompt],
        on_result: OnResult | None = None,
        on_flops: OnFlops | None = None,
        known: Mapping[int, LeafResult] | None = None,
    ) -> list[LeafResult]:
        """Answer every prompt; results in their order.

        Args:
            on_result: called with (number of the prompt, result) as each is done.
            on_flops: called with the FLOPs of each finished step.
            known: results of an earlier run, by number. They are not computed again, and what is computed is what
                that run would have, to the bit.

        Raises:
            ValueError: as ``lower``; or logits that are not finite.
        """
        batch = prompts if isinstance(prompts, Batch) else self.lower(prompts)
        self.table = batch.table
        results: dict[int, LeafResult] = dict(known or {})
        wanted = (one for number, one in enumerate(batch.lowered) if number not in results)
        self.feeder.frames.expect(reach(batch.table, wanted))

        def done(index: int, result: LeafResult) -> None:
            results[index] = result
            if on_result is not None:
                on_result(index, result)

        with self.feeder.frames.staying(self._spare_bytes(batch)):
            self._walk(batch, results, done, on_flops)
        return [results[index] for index in range(len(batch.prompts))]

    def _spare_bytes(self, batch: Batch) -> int:
        """What visual features may fill of a GPU: a quarter of what the longest prompt's keys and values leave free."""
        if self.backend.device.type != "cuda":
            return 0
        longest = max((one.tokens for one in batch.lowered), default=0)
        free = processes.free_bytes(self.backend.device)
        each = 0 if self.backend.kv == "host" else self.backend.shape.kv_bytes_as(self.backend.kv)
        return max(0, free - longest * each // self.world_size) // 4

    def planned_flops(self, batch: Batch, known: Collection[int] = ()) -> int:
        """What ``run`` will tell ``on_flops`` in all."""
        shape = self.backend.shape
        return sum(step.flops(shape, self._count, batch.leaves) for step in steps(batch.tree, known))

    def _walk(self, batch: Batch, known: Mapping[int, LeafResult], done: OnResult, tick: OnFlops | None) -> None:
        """Compute what is not known, depth-first in one state."""
        room = max((answer_tokens(leaf, self._count) for leaf in batch.leaves), default=0)
        longest = max((one.tokens for one in batch.lowered), default=0)
        self.check_reach(longest)
        self.state = self.new_state(longest + room)
        # Rows may be cut anywhere; of other states, ``marks[depth]`` is that in which a node at that depth begins.
        trunks, shape = self.state.is_rows, self.backend.shape
        marks: list[Any] = [self.state.mark()]
        for step in steps(batch.tree, set(known), trunks=trunks):
            if trunks:
                self.state.crop_to(step.past)
                self._finish(step, batch, done)
            else:
                del marks[step.depth + 1 :]
                self.state.rewind(marks[step.depth])
                marks += [self._finish(step, batch, done)] * step.nodes
            if tick is not None:
                tick(step.flops(shape, self._count, batch.leaves))
        self.peak_kv_bytes = max(self.peak_kv_bytes, self.state.num_bytes)
        self.state = None

    def _count(self, text: str) -> int:
        return len(self.backend.token_ids(text))

    def new_state(self, room: int) -> Any:
        return self.backend.new_state(room)

    def feed(self, prompt: Lowered, start: int, stop: int) -> Any:
        """Continue the state by a prompt's atoms ``start`` to ``stop``; returns the mark of its end."""
        self._extend(prompt, start, stop)
        return self.state.mark()

    def answer(
        self, prompt: Lowered, start: int, leaf: Generate, on_text: Callable[[str], None] | None = None
    ) -> LeafResult:
        """Continue the state by a prompt's atoms from ``start`` on and generate; it then ends with the prompt."""
        last_1D = self._extend(prompt, start)
        mark = self.state.mark()
        result = self._generate(leaf, last_1D, prompt, on_text)
        self.state.rewind(mark)
        return result

    def _finish(self, step: Step, batch: Batch, done: OnResult) -> Any:
        """Extend the state by a step and score the leaves at its end; returns its mark there, None if none needs it."""
        # A target that is the only leaf rides in the same forward; the walk takes its tokens away with the branch.
        lone = batch.leaves[step.ends[0]] if step.lone else None
        ahead = self.backend.token_ids(lone.text)[:-1] if isinstance(lone, Target) else []
        needed = None if step.leaves else step.past + step.new
        with part("prefill, shared" if step.shared else "prefill, own"):
            hidden_LD = self._extend(step.prompt, step.start, step.stop, ahead, keep=len(ahead) + 1, needed=needed)
        end = None if step.lone else self.state.mark()
        scored: dict[Target | Generate, LeafResult] = {}
        for index in step.leaves:
            prompt, leaf = batch.lowered[index], batch.leaves[index]
            if leaf not in scored:
                with part("answers"):
                    scored[leaf] = self._leaf(leaf, hidden_LD, prompt, rides=step.lone)
                if end is not None:
                    self.state.rewind(end)
            done(index, scored[leaf])
        return end

    def _leaf(self, leaf: Leaf, hidden_LD: torch.Tensor, prompt: Lowered, *, rides: bool) -> LeafResult:
        """Score a leaf behind the state; of a target that ``rides`` the hidden states are all there."""
        if isinstance(leaf, Generate):
            return self._generate(leaf, hidden_LD, prompt)
        forced = [] if rides else self.backend.token_ids(leaf.text)[:-1]
        rest = [self._extend(prompt, len(prompt), ids=forced, keep=len(forced))] if forced else []
        return self._target(leaf, torch.cat([hidden_LD, *rest]), prompt)

    def _target(self, leaf: Target, hidden_LD: torch.Tensor, prompt: Lowered) -> LeafResult:
        """Score an answer from the hidden states that predict its tokens."""
        return self._scored(leaf, self.backend.logits(hidden_LD), prompt)

    def _scored(self, leaf: Target, logits_LV: torch.Tensor, prompt: Lowered) -> LeafResult:
        answer = self.backend.token_ids(leaf.text)
        scored: tuple[list[int], list[float]] | None
        try:
            scored = score_answer(logits_LV, answer)
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
            prompt_tokens=prompt.tokens,
        )

    def _generate(
        self,
        leaf: Generate,
        last_1D: torch.Tensor,
        prompt: Lowered,
        on_token: Callable[[str], None] | None = None,
    ) -> LeafResult:
        """Generate behind the state, which holds ``prompt`` and whose last hidden state is at hand."""

        def step(token: int) -> torch.Tensor:
            return self.backend.logits(self._extend(prompt, len(prompt), ids=[token]))[-1]

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
                    set(self._prompt_ids(prompt)) if leaf.repetition_penalty != 1.0 else (),
                    self.agree,
                )
        except NotFiniteError as error:
            raise self.not_finite(prompt, error.ids) from None
        return LeafResult(text=text, predicted_ids=ids, answer_ids=[], answer_logprobs=[], prompt_tokens=prompt.tokens)

    def _prompt_ids(self, prompt: Lowered) -> list[int]:
        """One id a token of the prompt; where a visual token has none, the prompt's first id."""
        ids_A = self.table.ids(prompt.atoms_A)
        first = next((int(token) for token in ids_A if token >= 0), 0)
        ids_T = ids_A.repeat(self.table.sizes(prompt.atoms_A))
        ids_T[ids_T < 0] = first
        return [int(token) for token in ids_T]

    def agree(self, value: T) -> T:
        """What all processes that walk a tree in step take for ``value``, the first one's: those that round otherwise
        must not part, for they would wait for each other in vain."""
        return value if self.group is None else processes.broadcast(value, self.group)

    def not_finite(self, prompt: Lowered, ids: Sequence[int]) -> ValueError:
        """The error for NaN or infinite logits behind a prompt and ``ids``; uses the state up. Collective."""

        def rerun() -> None:
            self.state = None  # there need not be room for two
            self.state = self.new_state(prompt.tokens + len(ids))
            self._extend(prompt, 0, ids=ids)

        embeds = (self.backend.embed(chunk) for chunk in self.chunks(prompt, ids=ids))
        return not_finite(self.backend, embeds, rerun)

    def chunks(
        self,
        prompt: Lowered,
        start: int = 0,
        stop: int | None = None,
        ids: Sequence[int] = (),
        *,
        size: int | None = None,
        behind: int = 0,
    ) -> Iterator[Chunk]:
        """As ``Feeder.chunks``, of this engine's table and by default of its chunks' size."""
        size = self.options.chunk_tokens * self.world_size if size is None else size
        return self.feeder.chunks(self.table, prompt, start, stop, ids, size=size, behind=behind)

    def _search(self, leaf: Generate, prompt: Lowered) -> tuple[str, list[int]]:
        """Beam search by transformers, with a cache of its own: beams part, and this one holds a single sequence."""
        if prompt.positions_PT is not None or not self.backend.plain_decoder or self.group is not None:
            where = "" if self.group is None else " over several processes"
            raise ValueError(
                f"num_beams={leaf.num_beams} is not to be had of {self.backend.name}{where}; use num_beams=1"
            )
        if self.backend.kv != "device":
            raise ValueError(f"num_beams={leaf.num_beams} keeps keys and values on the device; use kv=device")
        embeds_TD = torch.cat([self.backend.embed(chunk) for chunk in self.chunks(prompt)])
        return beam_search(leaf, self.backend, embeds_TD, self._prompt_ids(prompt))

    def _extend(
        self,
        prompt: Lowered,
        start: int,
        stop: int | None = None,
        ids: Sequence[int] = (),
        keep: int = 1,
        needed: int | None = None,
    ) -> torch.Tensor:
        """Append atoms and then ids to the state; returns the last ``keep`` hidden states, (keep, D).

        Args:
            needed: leave out the chunks that begin so many tokens from the prompt's start, or behind them.
        """
        behind = self.state.length - prompt.tokens if start == len(prompt) else 0
        tail: list[torch.Tensor] = []
        for chunk in self.chunks(prompt, start, stop, ids, behind=behind):
            if needed is not None and chunk.start >= needed:
                break
            tail = [torch.cat([*tail, self.hidden(chunk, keep)])[-keep:]]
        return tail[0]

    def hidden(self, chunk: Chunk, keep: int) -> torch.Tensor:
        """One forward of new tokens behind the state; their last ``keep`` hidden states, (at most keep, D).

        Raises:
            ValueError: more tokens than the model gives the same states for in parts as in one forward.
        """
        assert chunk.start == self.state.length, f"a chunk at {chunk.start} behind {self.state.length} tokens"
        self.check_reach(chunk.start + len(chunk))
        return self.backend.forward(chunk, self.state, keep)

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
    """Scores each prompt on its own. Generation leaves have a state of their own, unshared."""

    def planned_flops(self, batch: Batch, known: Collection[int] = ()) -> int:
        return sum(self._flops(batch, index) for index in range(len(batch.prompts)) if index not in known)

    def _flops(self, batch: Batch, index: int) -> int:
        prompt, shape = batch.lowered[index].tokens, self.backend.shape
        return shape.forward_flops(prompt) + answer_flops(batch.leaves[index], prompt, shape, self._count)

    def _walk(self, batch: Batch, known: Mapping[int, LeafResult], done: OnResult, tick: OnFlops | None) -> None:
        for index in [index for index in range(len(batch.prompts)) if index not in known]:
            done(index, self._score(batch.prompts[index], batch.lowered[index]))
            if tick is not None:
                tick(self._flops(batch, index))
        self.state = None

    def _score(self, prompt: Prompt, lowered: Lowered) -> LeafResult:
        leaf = prompt.request.leaf
        if isinstance(leaf, Target):
            forced = self.backend.token_ids(leaf.text)[:-1]
            self.check_reach(lowered.tokens + len(forced), in_parts=False)
            own_LV = self.backend.reference(prompt, forced)
            if own_LV is not None:
                return self._scored(leaf, own_LV, lowered)
            (chunk,) = self.chunks(lowered, ids=forced, size=lowered.tokens + len(forced))
            return self._target(leaf, self.backend.forward(chunk, None, len(forced) + 1), lowered)
        self.state = None  # there need not be room for two
        self.state = self.new_state(lowered.tokens + leaf.max_new_tokens)
        return self._generate(leaf, self._extend(lowered, 0), lowered)
