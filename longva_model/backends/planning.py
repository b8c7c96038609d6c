"""What a needle grid costs on any video-language model, by its config and processor alone.

The model is made on torch's "meta" device, where tensors have shapes and no content: its positions are its own, its
weights are counted and never read. The grid is lowered as a run lowers it, so prompts, sharing and steps are those of
a run; only the frames are stand-ins that nobody looks at.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image as PILImage

from longva_model.backends.any_model import parts_of, processor_of, renderer_of
from longva_model.backends.backend import building, decoder_shape
from longva_model.backends.families import family_of
from longva_model.backends.lowering import Lowering
from longva_model.backends.refusals import refuse_by_config
from longva_model.backends.unit_cutting import Fitted
from longva_model.checkpoints.checkpoint import resolve_folder
from longva_model.engine.atoms import AtomTable, Lowered, PrefixTree
from longva_model.engine.chunks import Chunk
from longva_model.engine.state import new_state
from longva_model.engine.steps import steps
from longva_model.prompts.prompting import Prompt, build_question
from longva_model.renamed import cache_keyword
from vniah.contract.cost import ModelShape, answer_flops, answer_tokens
from vniah.contract.requests import Target
from vniah.contract.sources import FramesNHWC
from vniah.files import user_path
from vniah.needles.needle import Picture
from vniah.runs.grid import Grid
from vniah.runs.plan import Plan, chunk_bytes
from vniah.visual.compose import Inserted, SplicedVideo

if TYPE_CHECKING:
    from vniah.visual.task import VisualTask

# Bytes of a weight, and of a number in the KV cache: bfloat16, as a run on a GPU has it.
_BYTES = 2
_NEEDLE_SIZE = (32, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedShape(ModelShape):
    """A decoder by its modules and by what it keeps of a prompt, where heads and layers are not all alike.

    ``layers`` are those that look at all tokens before. Windows of sliding attention save nothing: all rows are kept,
    and a mask is laid over them.

    Attributes:
        passed: weights that every token passes; of experts, those that are chosen for it.
        row_bytes: what a token adds to the KV cache.
        state_bytes: what recurrent layers keep, whatever the length.
        weights: of the whole model, towers included.
    """

    passed: int
    row_bytes: int
    state_bytes: int
    weights: int

    @property
    def decoder_params(self) -> int:
        return self.passed

    @property
    def kv_bytes_per_token(self) -> int:
        return self.row_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnPlan:
    """How a column's frames are shown.

    Attributes:
        frames: of the haystack.
        fitted: (width, height) of a frame in pixels when it reaches the tower.
        tokens_a_unit, frames_a_unit: of what is encoded at once, such as a pair of frames.
        prompt_tokens: of the longest prompt without its answer.
    """

    frames: int
    fitted: tuple[int, int]
    tokens_a_unit: int
    frames_a_unit: int
    prompt_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoicePlan:
    """The grid with frames of one choice of ``frame_tokens``.

    Attributes:
        held: whether frames are of another size than the processor would choose for some columns.
        columns: by frames, rising.
        costs: as ``vniah.runs.plan.make_plan`` has them of other models.
    """

    frame_tokens: str
    presentation: str
    held: bool
    columns: tuple[ColumnPlan, ...]
    costs: Plan
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedCell:
    """What a cell shows and asks, as far as its cost goes; films and ``inserted`` pictures are told apart and never
    looked at."""

    length: int
    control: bool
    question: str
    answer: str
    inserted: tuple[Inserted, ...] = ()
    film: str = "haystack"


def needle_cells(grid: Grid, needles: Sequence[tuple[str, str, str]]) -> list[PlannedCell]:
    """Those of V-NIAH, of (id, question, answer) needles."""
    asked = {needle: (question, answer) for needle, question, answer in needles}
    pictures = _StandIns()
    return [
        PlannedCell(
            length=cell.length,
            control=cell.is_control,
            question=asked[cell.needle][0],
            answer=asked[cell.needle][1],
            inserted=() if cell.needle_index is None else (Inserted(pictures[cell.needle], cell.needle_index),),
        )
        for cell in grid.cells(asked)
    ]


def task_cells(tasks: Sequence[VisualTask]) -> list[PlannedCell]:
    """Those that tasks score, by their own scenes; the film's frames are not drawn, nor are their pictures."""
    pictures = _StandIns()
    return [
        PlannedCell(
            length=task.cell(row).length,
            control=row["control"],
            question=task.question(row),
            answer=task.target(row),
            inserted=tuple(replace(one, picture=pictures[one.picture.fingerprint]) for one in task.video(row).inserted),
            film=task.haystacks[task.cell(row).seed].fingerprint,
        )
        for task in tasks
        for row in task.rows
    ]


class _StandIns(dict[str, Picture]):
    """A small picture for each name, told apart by its pixels, as pictures are."""

    def __missing__(self, name: str) -> Picture:
        self[name] = Picture(functools.partial(PILImage.new, "RGB", _NEEDLE_SIZE, len(self)), name)
        return self[name]


class _Film:
    """Frames that are not there: of a size, under the fingerprint of their film."""

    endless = True
    approximate = False

    def __init__(self, name: str, size: tuple[int, int], num_frames: int) -> None:
        self.name = self.fingerprint = name
        self.size, self._num_frames = size, num_frames

    def __len__(self) -> int:
        return self._num_frames

    def frames(self, start: int, stop: int) -> FramesNHWC:
        raise ValueError("a plan has no frames: this model's prompts depend on what their frames show")

    def reader(self) -> None:
        return None


class Planner:
    """A video-language model of transformers without its weights.

    Args:
        model: a checkpoint's folder or Hub id; of the latter, config and processor are fetched where they are not
            in the cache.
        presentation: as the model argument.
        thinking: of the chat template, such as {"enable_thinking": False}.

    Raises:
        FileNotFoundError: no such model.
        ValueError: one that a run would refuse by its config, or of another kind.
    """

    def __init__(self, model: str, presentation: str = "auto", thinking: dict[str, bool] | None = None) -> None:
        from transformers import (
            MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
            AutoConfig,
            AutoModelForImageTextToText,
        )

        path = user_path(model)
        folder = resolve_folder(str(path) if path.is_dir() else model, weights=False)
        with building(folder):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        refuse_by_config(model, config)
        if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            raise ValueError(
                f"{model} ({config.model_type}) is no image-text-to-text model of this transformers; give a name or "
                "folder of another model"
            )
        with building(folder), torch.device("meta"):
            made = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
        self.processor = processor_of(folder)
        self.name, self.config, self._model = model, config, made.eval()
        self._presentation, self._thinking = presentation, thinking or {}
        self._inner, self._decoder = parts_of(made)
        self._counts: dict[str, int] = {}
        self.shape = self._counted()
        self.no_blocks = self._no_blocks()

    def choice(
        self,
        frame_tokens: str,
        cells: Sequence[PlannedCell],
        size: tuple[int, int],
        chunk_tokens: int = 8192,
    ) -> ChoicePlan:
        """The grid's cost under one choice of ``frame_tokens``.

        Args:
            cells: with at least one needle among them.
            size: (height, width) of the haystack's frames.

        Raises:
            ValueError: a model whose prompts depend on what frames show, or what the renderer refuses.
        """
        renderer = renderer_of(
            self.processor, self.config, self._inner, self._presentation, frame_tokens, self._thinking
        )
        if renderer.needs_frames:
            raise ValueError(
                f"{self.name} ({self.config.model_type}) cannot be planned: it leaves out tokens of frames that "
                "resemble the frame before, so a prompt's length is known only with its frames"
            )
        lowering = Lowering(renderer)
        prompts = self._prompts(cells, size)
        lowering.expect(prompts)
        table = AtomTable()
        lowered = [lowering.lower(one.request.segments, one.media, table) for one in prompts]
        costs = self._costs(cells, prompts, lowered, chunk_tokens)
        columns = []
        for frames in sorted({cell.length for cell in cells}):
            mine = [(cell, one) for cell, one in zip(cells, lowered, strict=True) if cell.length == frames]
            # With its needles.
            shown = frames + max(sum(not one.instead for one in cell.inserted) for cell, _ in mine)
            told = lowering.columns[(shown,), (f"{size[1]}x{size[0]}",)]
            fitted = Fitted.read(told["fitted"][0])
            longest = max(one.tokens for _, one in mine)
            columns.append(
                ColumnPlan(
                    frames=frames,
                    fitted=(fitted.width, fitted.height),
                    tokens_a_unit=told["tokens_a_unit"][0],
                    frames_a_unit=told["frames_a_unit"][0],
                    prompt_tokens=longest,
                )
            )
        return ChoicePlan(
            frame_tokens=frame_tokens,
            presentation=renderer.presentation,
            held=frame_tokens != "auto" and renderer.size_rule != "auto",
            columns=tuple(columns),
            costs=costs,
            notes=tuple(lowering.notes),
        )

    def _prompts(self, cells: Sequence[PlannedCell], size: tuple[int, int]) -> list[Prompt]:
        """Each cell's prompt, as a run builds it."""
        longest = max(cell.length for cell in cells)
        films: dict[str, Any] = {name: _Film(name, size, longest) for name in {cell.film for cell in cells}}
        prompts = []
        for cell in cells:
            video = SplicedVideo(haystack=films[cell.film], num_frames=cell.length, inserted=cell.inserted)
            prompts.append(build_question(cell.question, [video], Target(cell.answer), max_frames=10**9))
        return prompts

    def _costs(
        self, cells: Sequence[PlannedCell], prompts: Sequence[Prompt], lowered: Sequence[Lowered], chunk: int
    ) -> Plan:
        """The figures of a run."""
        shape, leaves = self.shape, [prompt.request.leaf for prompt in prompts]
        answers = [answer_tokens(leaf, self._count) for leaf in leaves]
        texts = [leaf.text if isinstance(leaf, Target) else "" for leaf in leaves]
        ends = [one.tokens for one in lowered]
        longest = max(end + answer for end, answer in zip(ends, answers, strict=True))
        tree_flops = fed = held = 0
        marks: list[int | None] = [None]
        for number, step in enumerate(steps(PrefixTree(lowered))):
            del marks[step.depth + 1 :]
            marks += [None if step.lone else number] * step.nodes
            held = max(held, len({mark for mark in marks if mark is not None}))
            tree_flops += step.flops(shape, self._count, leaves)
            # Of an answer, all tokens but the last are fed, once for prompts that are the same.
            fed += step.new + sum(max(self._count(text) - 1, 0) for text in {texts[index] for index in step.leaves})
        with_needle = [number for number, cell in enumerate(cells) if not cell.control]
        plain = sum(
            shape.forward_flops(ends[number]) + answer_flops(leaves[number], ends[number], shape, self._count)
            for number in with_needle
        )
        return Plan(
            cells=len(with_needle),
            controls=len(cells) - len(with_needle),
            prompt_tokens=sum(ends[number] for number in with_needle),
            every_token=sum(ends) + sum(max(0, answer - 1) for answer in answers),
            tree_tokens=fed,
            tree_flops=tree_flops,
            plain_flops=plain,
            longest_tokens=longest,
            # A mark of the walk holds a copy of the recurrent states.
            kv_bytes=longest * shape.row_bytes + (1 + held) * shape.state_bytes,
            weight_bytes=shape.weights * _BYTES,
            chunk_bytes=chunk_bytes(shape, min(chunk, longest)),
            logits_bytes_plain=4 * longest * shape.vocab,
        )

    def _count(self, text: str) -> int:
        if text not in self._counts:
            self._counts[text] = len(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"])
        return self._counts[text]

    # ---------------------------------------------------------------- the decoder

    def _counted(self) -> CountedShape:
        """By the modules, and by what one forward of a token leaves in a state: both have shapes and no content."""
        config = self._decoder.config
        tables = {id(part.weight) for part in self._decoder.modules() if isinstance(part, torch.nn.Embedding)}
        share = _chosen(config)
        passed = sum(
            round(one.numel() * (share if "experts" in name and "shared" not in name else 1))
            for name, one in self._decoder.named_parameters()
            if id(one) not in tables
        )
        small, large = (self._kept(room) for room in (1, 2))
        kinds = getattr(config, "layer_types", None) or []
        looking = sum(kind not in _NOT_LOOKING for kind in kinds) if kinds else config.num_hidden_layers
        sizes = asdict(decoder_shape(config, 0, _BYTES))
        return CountedShape(
            **{**sizes, "layers": looking},
            passed=passed,
            row_bytes=large - small,
            state_bytes=2 * small - large,
            weights=sum(one.numel() for one in self._model.parameters()),
        )

    def _no_blocks(self) -> str:
        """Why keys and values cannot be kept in blocks, by the config alone; "" where they can."""
        try:
            new_state(self._decoder.config, kv="host")
        except ValueError as error:
            return str(error)
        return ""

    @torch.inference_mode()
    def _kept(self, room: int) -> int:
        """Bytes of a state with room for so many tokens, when one is in it."""
        state = new_state(self._decoder.config, room)
        zero_T = torch.zeros(1, dtype=torch.long, device="meta")
        chunk = Chunk(
            ids_T=zero_T, positions=zero_T, start=0, visual_T=zero_T.bool(), features_kVD=None, types_S=zero_T.byte()
        )
        embeds_TD = torch.empty((1, self._decoder.config.hidden_size), dtype=torch.bfloat16, device="meta")
        given = {"position_ids": zero_T[None], "use_cache": True, cache_keyword(self._decoder): state}
        family_of(self._model, self._inner, self._decoder).decode(chunk, embeds_TD, given)
        return state.num_bytes


# Types of layers that look at no token before but through what they keep of it.
_NOT_LOOKING = ("linear_attention", "conv", "moe", "mlp")


def _chosen(config: Any) -> float:
    """The share of a decoder's experts that a token passes."""
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    experts = experts or getattr(config, "n_routed_experts", None)
    return int(config.num_experts_per_tok) / int(experts) if experts else 1.0
