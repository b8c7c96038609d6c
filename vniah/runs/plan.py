"""The plan of a run: cells, tokens, FLOPs, memory and time before anything is computed.

Pure arithmetic on the request tree; needs neither the haystack's pixels nor a model's weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from vniah.contract.cost import (
    KV_BLOCK,
    KV_FORMS,
    SHAPES,
    ModelShape,
    TokenCount,
    answer_flops,
    answer_tokens,
    estimate_tokens,
    longest_path,
    plain_flops,
    request_tokens,
    segment_tokens,
)
from vniah.contract.requests import Frames, Image, Leaf, Request, Segment, Target, Text, Tokens
from vniah.files import is_hub_id, read_json, user_path
from vniah.notices import did_you_mean
from vniah.prompts import QWEN_1_5, PromptTemplate, get_template, question_text
from vniah.runs.grid import Grid, around_needle

# Parts of the configs of models that see, and kinds among them whose frames' tokens follow from such a config.
_PARTS = ("vision_config", "vit_config", "text_config", "thinker_config")
_OWN_KINDS = ("longva", "llava_qwen", "llava_llama", "llava_mistral", "llava_next_video")
# The share of a device's memory that a run may fill.
FILLED = 0.9
# The share of the maker's figure that long prefills reach; an assumption of the plan, printed with it.
UTILISATION = 0.5


class Gpu(NamedTuple):
    """``tflops`` is the maker's dense bf16 figure; ``memory_gb`` counts 10**9 bytes."""

    name: str
    tflops: float
    memory_gb: float


GPUS = {
    "A100-40GB": Gpu("A100-40GB", 312, 40),
    "A100-80GB": Gpu("A100-80GB", 312, 80),
    "L40S": Gpu("L40S", 362, 48),
    "RTX-4090": Gpu("RTX-4090", 165, 24),
    "H100-80GB": Gpu("H100-80GB", 989, 80),
    "H200-141GB": Gpu("H200-141GB", 989, 141),
    "B200-180GB": Gpu("B200-180GB", 2250, 180),
}


def get_gpu(name: str) -> Gpu:
    """A GPU by its name or by a beginning of it that fits one alone ("H100"), whatever the letters' case.

    Raises:
        ValueError: no GPU, or several; names them.
    """
    fitting = [one for one in GPUS if f"{one}-".casefold().startswith(f"{name}-".casefold())]
    if len(fitting) > 1:
        raise ValueError(f"the GPU {name!r} comes in {' and '.join(fitting)}; say which")
    if not fitting:
        near = did_you_mean(name, GPUS)
        raise ValueError(f"no figures for the GPU {name!r}; expected one of {', '.join(GPUS)}{near}")
    return GPUS[fitting[0]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a grid costs. FLOPs count a multiply-add as two.

    Attributes:
        cells, controls: prompts with a needle, and without.
        prompt_tokens: of all cells, as one forward a cell would see them.
        every_token: that is fed with one forward each, controls and answers included.
        tree_tokens: that are fed when each shared prefix is computed once, for the same.
        tree_flops: with shared prefixes, controls included.
        plain_flops: one forward a cell, no controls (what the reference runs).
        longest_tokens: the longest prompt with its answer.
        kv_bytes: the KV cache of that prompt.
        weight_bytes: the decoder, embeddings and head, in the KV cache's precision.
        chunk_bytes: activations of one prefill chunk.
        logits_bytes_plain: a full-vocabulary fp32 tensor for the longest prompt, which is never made here.
    """

    cells: int
    controls: int
    prompt_tokens: int
    every_token: int
    tree_tokens: int
    tree_flops: int
    plain_flops: int
    longest_tokens: int
    kv_bytes: int
    weight_bytes: int
    chunk_bytes: int
    logits_bytes_plain: int

    @property
    def shared(self) -> float:
        """The share of ``every_token`` that the tree need not feed."""
        return 1 - self.tree_tokens / self.every_token

    @property
    def peak_bytes(self) -> int:
        return self.kv_bytes + self.weight_bytes + self.chunk_bytes

    def seconds(self, gpu: Gpu, flops: int) -> float:
        """An estimate: the time at ``UTILISATION`` of the GPU's stated rate."""
        return flops / (gpu.tflops * 1e12 * UTILISATION)


@dataclass(frozen=True, slots=True, kw_only=True)
class KVPlan:
    """Keys and values kept in one of ``KV_FORMS``.

    Attributes:
        token_bytes: that a token adds, wherever they are kept.
        longest_bytes: of the longest prompt.
        fits_tokens: of the longest prompt that fits the device, or the host's memory where they are kept there; None
            where that is not known.
        layer_bytes: that a layer brings to the device behind the longest prompt, for a chunk or a token alike.
        prompt_bytes: that all layers bring while the longest prompt is computed.
    """

    kv: str
    token_bytes: int
    longest_bytes: int
    fits_tokens: int | None
    layer_bytes: int = 0
    prompt_bytes: int = 0


def kv_plans(
    plan: Plan, shape: ModelShape, gpu: Gpu, *, chunk_tokens: int = 8192, host_gb: float | None = None
) -> list[KVPlan]:
    """What each way of keeping keys and values takes on one device.

    Args:
        host_gb: the host's memory, of 10**9 bytes each, where it is known.
    """
    room = FILLED * gpu.memory_gb * 1e9 - plan.weight_bytes - plan.chunk_bytes
    found = []
    for kv in KV_FORMS:
        each = shape.kv_bytes_as(kv)
        # Two blocks of a layer are on the device beside those that are kept, or one in whole numbers.
        beside = 0 if kv == "device" else 2 * KV_BLOCK * shape.kv_bytes_per_token // shape.layers
        fits: int | None = max(0, int(room - beside) // each)
        brought = {}
        if kv == "host":
            memory = None if host_gb is None else int(FILLED * host_gb * 1e9) // each
            fits = memory if room > beside else 0
            behind = range(chunk_tokens, plan.longest_tokens, chunk_tokens)
            brought = {
                "layer_bytes": plan.longest_tokens * each // shape.layers,
                "prompt_bytes": sum(behind) * each,
            }
        found.append(
            KVPlan(kv=kv, token_bytes=each, longest_bytes=plan.longest_tokens * each, fits_tokens=fits, **brought)
        )
    return found


def grid_requests(grid: Grid, needles: Sequence[tuple[str, str, str]]) -> tuple[list[Request], list[Request]]:
    """The cells and the controls of a V-NIAH grid, for (id, question, answer) needles; sources are placeholders."""
    by_id = {needle_id: (question, answer) for needle_id, question, answer in needles}
    cells: list[Request] = []
    controls: list[Request] = []
    for cell in grid.cells(by_id):
        question, answer = by_id[cell.needle]
        before, behind = (
            [Frames("haystack", span.start, span.stop)] if span else []
            for span in around_needle(cell.length, cell.needle_index)
        )
        needle = [] if cell.is_control else [Image(cell.needle)]
        segments: list[Segment] = [Text(QWEN_1_5.pre), *before, *needle, *behind]
        segments += [Text(question_text(question)), Text(QWEN_1_5.post)]
        (controls if cell.is_control else cells).append(Request(tuple(segments), Target(answer)))
    return cells, controls


class Shared(NamedTuple):
    """What a tree costs."""

    flops: int
    tokens: int


def shared_cost(
    requests: Sequence[Request], shape: ModelShape, count: TokenCount = estimate_tokens, *, at: int = 0, past: int = 0
) -> Shared:
    """FLOPs and tokens fed when each shared prefix is computed once: ``tree_flops`` of the requests' tree without it.

    A long trunk with a branch at each of thousands of places has as many nodes, and each request would walk them all
    to its own. Here a span costs its longest reach once, since FLOPs of a causal forward add up over its pieces.

    Args:
        requests: alike in their first ``at`` segments, of ``past`` tokens. No span goes on where one of the same
            source ends, as none of a needle test does.
    """
    flops = tokens = 0
    spans: dict[tuple[type, str, int], int] = {}
    branches: dict[Segment, list[Request]] = {}
    answers: set[Leaf] = set()
    for request in requests:
        if at == len(request.segments):
            flops += answer_flops(request.leaf, past, shape, count)
            answers.add(request.leaf)
            continue
        segment = request.segments[at]
        branches.setdefault(segment, []).append(request)
        if isinstance(segment, Frames | Tokens):
            start = (type(segment), segment.source, segment.start)
            spans[start] = max(spans.get(start, 0), segment_tokens(segment, shape, count))
        elif len(branches[segment]) == 1:
            new = segment_tokens(segment, shape, count)
            flops, tokens = flops + shape.forward_flops(new, past), tokens + new
    # Of an answer, all tokens but the last are fed.
    tokens += sum(spans.values()) + sum(max(0, answer_tokens(leaf, count) - 1) for leaf in answers)
    flops += sum(shape.forward_flops(new, past) for new in spans.values())
    for segment, alike in branches.items():
        behind = past + segment_tokens(segment, shape, count)
        more = shared_cost(alike, shape, count, at=at + 1, past=behind)
        flops, tokens = flops + more.flops, tokens + more.tokens
    return Shared(flops, tokens)


def make_plan(
    cells: Sequence[Request],
    controls: Sequence[Request],
    shape: ModelShape,
    *,
    chunk_tokens: int = 8192,
    count: TokenCount = estimate_tokens,
    encode: Callable[[str], Sequence[int]] | None = None,
) -> Plan:
    """Add up a run on a model of ``shape``.

    Args:
        encode: counts in place of ``count``, and tells which tokens texts begin alike with: those are shared too.
    """
    if not cells:
        raise ValueError("there is nothing to plan: no cells")
    every = [*cells, *controls]
    if encode is not None:
        ids = functools.cache(encode)
        count = lambda text: len(ids(text))  # noqa: E731
        every = [replace(request, segments=tuple(_spelled(request.segments, ids))) for request in every]
        cells = every[: len(cells)]
    longest, shared = longest_path(every, shape, count), shared_cost(every, shape, count)
    prompts = [request_tokens(request, shape, count) for request in every]
    fed = [max(0, answer_tokens(request.leaf, count) - 1) for request in every]
    return Plan(
        cells=len(cells),
        controls=len(controls),
        prompt_tokens=sum(prompts[: len(cells)]),
        every_token=sum(prompts) + sum(fed),
        tree_tokens=shared.tokens,
        tree_flops=shared.flops,
        plain_flops=plain_flops(cells, shape, count),
        longest_tokens=longest,
        kv_bytes=longest * shape.kv_bytes_per_token,
        weight_bytes=shape.kv_bytes * (shape.decoder_params + (1 if shape.tied else 2) * shape.vocab * shape.hidden),
        chunk_bytes=chunk_bytes(shape, min(chunk_tokens, longest)),
        logits_bytes_plain=4 * longest * shape.vocab,
    )


def _spelled(segments: Iterable[Segment], encode: Callable[[str], Sequence[int]]) -> Iterator[Segment]:
    """Texts by their tokens, each a segment."""
    for segment in segments:
        if isinstance(segment, Text):
            yield from (Tokens(f"token {token}", 0, 1) for token in encode(segment.text))
        else:
            yield segment


def chunk_bytes(shape: ModelShape, tokens: int) -> int:
    """What one layer holds of a chunk of ``tokens``: residual, normed input, the MLP's two inner tensors and their
    product, queries, keys and values."""
    width = 3 * shape.hidden + 3 * shape.intermediate + (2 * shape.heads + 2 * shape.kv_heads) * shape.head_dim
    return tokens * width * shape.kv_bytes


def is_plain_model(model: str) -> bool:
    """Whether a shape says how a model shows frames: LongVA's kinds, and models of text. Others have a processor."""
    if model in SHAPES:
        return True
    path = user_path(model) / "config.json"
    if not path.is_file():
        # A Hub id, or no model at all, which is told as such.
        return not is_hub_id(model)
    config = _read_config(path)
    has_parts = any(isinstance(config.get(name), dict) for name in _PARTS)
    return not (isinstance(config.get("model_type"), str) and has_parts) or config["model_type"] in _OWN_KINDS


def shape_of(model: str, tokens_per_frame: int | None = None) -> ModelShape:
    """A model's shape: a name of ``SHAPES``, or a checkpoint folder's config.json.

    Raises:
        ValueError: neither (names the shapes that are known), or a config that is no language model's.
    """
    if model in SHAPES:
        return SHAPES[model]
    folder = user_path(model)
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(
            f"no model shape {model!r}; expected one of {', '.join(SHAPES)}, a folder with config.json, or a "
            f"Hub id owner/name{did_you_mean(model, SHAPES)}"
        )
    config = _read_config(path)
    text = config.get("text_config") or config
    if tokens_per_frame is None:
        vision = config.get("vision_config") or _tower_config(folder, config.get("mm_vision_tower"))
        side = int(vision.get("image_size", 336)) // int(vision.get("patch_size", 14))
        stride = int(config.get("mm_spatial_pool_stride") or config.get("spatial_pool_stride") or 2)
        tokens_per_frame = (side // stride) ** 2
    try:
        heads = int(text["num_attention_heads"])
        return ModelShape(
            layers=int(text["num_hidden_layers"]),
            hidden=int(text["hidden_size"]),
            intermediate=int(text["intermediate_size"]),
            heads=heads,
            kv_heads=int(text.get("num_key_value_heads") or heads),
            head_dim=int(text.get("head_dim") or int(text["hidden_size"]) // heads),
            vocab=int(text["vocab_size"]),
            tokens_per_frame=tokens_per_frame,
            tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
        )
    except KeyError as error:
        raise ValueError(f"{path} has no {error} and is no language model's; give the folder of one") from None


def checkpoint_tokens(model: str) -> Callable[[str], list[int]] | None:
    """Token ids of a text by the tokenizer.json of a checkpoint folder; ``None`` where there is none."""
    path = user_path(model) / "tokenizer.json"
    if model in SHAPES or not path.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise ValueError(f"{path} is not a tokenizer that can be read ({error}); copy it again") from None

    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)


def checkpoint_template(model: str) -> PromptTemplate:
    """The template that a checkpoint folder's config names; else that of the paper's models."""
    path = user_path(model) / "config.json"
    named = None if model in SHAPES or not path.is_file() else _read_config(path).get("chat_template_name")
    return QWEN_1_5 if named is None else get_template(str(named))


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no object; expected a model's config")
    return config


def _tower_config(folder: Path, name: Any) -> dict[str, Any]:
    """The config of the tower that a released checkpoint names, if it lies beside it; else nothing."""
    paths = [base / str(name) / "config.json" for base in (folder, folder.parent)] if name else []
    tower = next((_read_config(path) for path in paths if path.is_file()), {})
    return dict(tower.get("vision_config") or tower)
