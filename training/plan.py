"""Memory of a recipe, per GPU, before it runs: parameters, optimizer, activations, peak; and the longest sequence.

An account of tensors, not a fit: each term is written where it is added. ``tests/training/test_plan.py`` holds it
against measured peaks of small models. Sizes are bytes unless a name says tokens.

Symbols: D hidden, F MLP width, V vocabulary, t tokens on one GPU, b bytes of an activation (2 for bf16).
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from vniah.contract.cost import SHAPES, ModelShape
from vniah.files import read_json
from vniah.training.recipe import Recipe, load_recipe, shipped_recipes
from vniah.training.stages import CHUNK_ELEMENTS, AlignStage, DpoStage, NanoSize, Stage, TextStage, Train, inputs

GIB = 2**30
KNOWN = {
    "Qwen/Qwen2-7B-Instruct": SHAPES["LongVA-7B"],
    "lmms-lab/LongVA-7B": SHAPES["LongVA-7B"],
    "Qwen/Qwen3-8B": ModelShape(
        layers=36, hidden=4096, intermediate=12288, heads=32, kv_heads=8, head_dim=128, vocab=151936
    ),
    "meta-llama/Llama-3.1-8B-Instruct": ModelShape(
        layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8, head_dim=128, vocab=128256
    ),
}
# What the CUDA context, the allocator's gaps and NCCL's buffers take; an assumption, printed with the plan.
RESERVE = 3 * GIB
BYTES = {"bf16": 2, "fp32": 4}  # of an activation
Planned: TypeAlias = TextStage | AlignStage | DpoStage


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes on one GPU."""

    parameters: int
    gradients: int
    optimizer: int
    gathered: int
    checkpoints: int
    layer: int
    head: int
    tower: TowerMemory

    @property
    def activations(self) -> int:
        """What is kept, and the largest of what is never there together: a layer's work, the loss, the tower's work."""
        return self.tower.kept + max(self.checkpoints + max(self.layer, self.head), self.tower.layer)

    @property
    def peak(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.gathered + self.activations


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerShape:
    """A CLIP tower and the width it is projected to. ``layers`` are those that run."""

    layers: int
    width: int
    intermediate: int
    patches: int
    patch_size: int
    hidden: int
    params: int

    @property
    def projector_params(self) -> int:
        return self.hidden * (self.width + self.hidden + 2)


class TowerMemory(NamedTuple):
    """Bytes of tower and projector: kept until their backward pass, and worked with one layer at a time."""

    kept: int
    layer: int


NO_TOWER = TowerMemory(0, 0)


def memory(
    shape: ModelShape,
    train: Train,
    *,
    tokens: int,
    gpus: int,
    trained: int,
    frozen: int = 0,
    reference: int = 0,
    learnt_tokens: int | None = None,
    vision: TowerMemory = NO_TOWER,
) -> Memory:
    """Bytes on one GPU that has ``tokens`` at once, ``learnt_tokens`` of them with a label (all unless given).

    ``trained`` and ``frozen`` are parameters in all, ``reference`` those of DPO's frozen model, which has no fp32 copy;
    ``vision`` is what tower and projector take. Micro-batches add nothing: gradients are kept as shards between them.
    """
    b = BYTES[train.precision]
    shards = gpus if train.sharding == "fsdp2" else 1
    on_gpu = 0 if train.offload else 1
    per_layer, root = shape.decoder_params // shape.layers, 2 * shape.vocab * shape.hidden
    if shards > 1 or train.offload:
        # This layer and the next, a layer's gradient before it is scattered; embeddings and head stay, with theirs.
        gathered = b * (3 * per_layer + 2 * root)
    else:
        gathered = b * (trained + frozen) if b == 2 else 0  # autocast's copies of the weights
    tile = min(train.tile_tokens, tokens)
    kept, flying = _layer_bytes_per_token(shape, b, tiled=bool(tile))
    if train.ring_of(gpus) > 1:
        # Blocks that travel, twice (one is received while one is used), and fp32 sums of gradients and output.
        heads, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        kept += 2 * 2 * kv * b + 4 * 2 * heads + 2 * 2 * 4 * kv
    kept_layers = {"full": shape.layers, "offload": 2, "none": 0}[train.checkpointing]
    layer = tokens * ((shape.layers if train.checkpointing == "none" else 1) * kept + flying)
    if tile:
        # A tile of the MLP with its gradients, and the sums of its weights' gradients.
        layer += tile * sum(_layer_bytes_per_token(shape, b)) + 3 * b * shape.hidden * shape.intermediate
    learnt = tokens if learnt_tokens is None else learnt_tokens
    chunk = min(learnt, max(1, CHUNK_ELEMENTS // shape.vocab))
    # Logits in b and in fp32 and their gradient, the weight's gradient in fp32, the hidden state and its gradient.
    # The last norm's input, its fp32 copies and its output are there as well.
    head = chunk * shape.vocab * (2 * b + 4) + 4 * shape.vocab * shape.hidden + 2 * learnt * shape.hidden * b
    head += tokens * shape.hidden * (b if tile else b + 2 * 4)
    return Memory(
        parameters=((trained + frozen) * 4 + reference * b) // shards * on_gpu,
        gradients=trained * 4 // shards * on_gpu,
        optimizer=trained * 8 // shards * on_gpu,
        gathered=gathered,
        checkpoints=kept_layers * tokens * shape.hidden * b,
        layer=layer,
        head=head,
        tower=vision,
    )


def _layer_bytes_per_token(shape: ModelShape, b: int, *, tiled: bool = False) -> tuple[int, int]:
    """What one decoder layer keeps of a token for its backward pass, and the gradients in flight there.

    ``tiled``: MLP and norms keep their inputs alone, and make their outputs anew tile by tile.
    """
    heads, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = b * (2 * heads + 3 * kv + heads + shape.hidden)  # q, k before and after RoPE, v, out, projected
    if tiled:
        # Inputs and outputs of both norms and of the MLP; in flight are the gradients of q, k, v and of the residual.
        return attention + b * 6 * shape.hidden, b * (heads + 2 * kv + 2 * shape.hidden)
    norms = 2 * shape.hidden * (b + 2 * 4)  # the input, its fp32 copy and the normalised one, twice
    mlp = b * 4 * shape.intermediate  # gate, up, silu(gate), their product
    return norms + attention + mlp, b * (3 * shape.intermediate + 2 * shape.hidden)  # in flight: the MLP's, the largest


def tower_memory(
    shape: TowerShape, *, tiles: int, b: int, trained: bool, checkpointing: Literal["none", "full", "offload"]
) -> TowerMemory:
    """Memory of ``tiles`` tiles on one GPU, all in the tower at once; of one that is not trained nothing is kept."""
    tokens, width, wide = tiles * (shape.patches + 1), shape.width, shape.intermediate
    # Both norms' inputs and outputs, q, k, v, what attention gives, its projection; fc1, its sigmoid and product.
    layer_kept = tokens * b * (9 * width + 3 * wide)
    flying = tokens * b * (2 * wide + 2 * width)
    # Features in, the first linear, its GELU, the second.
    projector = tiles * shape.patches * b * (width + 3 * shape.hidden)
    # Bytes, and the values that the tower is given of them.
    pixels = (1 + 4 + b) * 3 * tiles * shape.patches * shape.patch_size**2
    if not trained:
        return TowerMemory(kept=projector + pixels, layer=tokens * b * (4 * width + 2 * wide))
    if checkpointing == "none":
        return TowerMemory(kept=projector + pixels + shape.layers * layer_kept, layer=flying)
    layers = shape.layers if checkpointing == "full" else 2
    return TowerMemory(kept=projector + pixels + layers * tokens * width * b, layer=layer_kept + flying)


def _vision_memory(stage: Planned, shape: ModelShape, tokens: int) -> TowerMemory:
    """What tower and projector take when all of ``tokens`` are visual; nothing for text."""
    if isinstance(stage, TextStage):
        return NO_TOWER
    tower = _tower_of(shape)
    pooled = tower.patches // 4
    if isinstance(stage, DpoStage):
        tiles = min(-(-tokens // pooled), 2 * stage.num_frames * stage.train.batch_size)
    else:
        tiles = -(-tokens // (pooled if stage.data.merge == "unires" else tower.patches))
    return tower_memory(
        tower,
        tiles=tiles,
        b=BYTES[stage.train.precision],
        trained=isinstance(stage, DpoStage) or "tower" in stage.parts,
        checkpointing=stage.train.checkpointing,
    )


def longest_sequence(
    shape: ModelShape,
    train: Train,
    *,
    gpus: int,
    capacity: int,
    vision_of: Callable[[int], TowerMemory] = lambda tokens: NO_TOWER,
    **parameters: int,
) -> int:
    """Tokens of the longest sequence whose peak is at most ``capacity``; 0 when none fits.

    Under ``ring`` several GPUs share it, else one GPU holds it. ``vision_of``: what the images of so many tokens take.
    ``parameters``: trained and frozen.
    """

    def peak(tokens: int) -> int:
        return memory(shape, train, tokens=tokens, gpus=gpus, vision=vision_of(tokens), **parameters).peak

    longest = max(0, bisect.bisect_right(range(1 << 26), capacity, key=peak) - 1)
    ring = train.ring_of(gpus)
    return longest // 2 * 2 * ring if ring > 1 else longest


def plan_recipe(recipe: Recipe, *, gpus: int, gpu_gib: float) -> str:
    """The memory of every stage that trains, as a table. ValueError: no GPU, or a model whose shape is not known."""
    if gpus < 1 or gpu_gib <= 0:
        raise ValueError(f"a plan needs at least one GPU with memory, got {gpus} of {gpu_gib:g} GiB")
    capacity = int(gpu_gib * GIB) - RESERVE
    lines = [
        f"{recipe.name} on {gpus} x {gpu_gib:g} GiB, {RESERVE / GIB:g} GiB of each kept free",
        f"{'stage':<24}{'tokens/GPU':>11}{'weights':>9}{'grads':>8}{'optim.':>8}{'gathered':>9}{'activ.':>8}"
        f"{'peak GiB':>10}{'fits':>6}{'longest':>11}",
    ]
    notes = []
    for stage in recipe.stages:
        if not isinstance(stage, TextStage | AlignStage | DpoStage):
            continue
        shape = _shape_of(stage, recipe)
        sizes = _parameters_of(stage, shape)
        tokens = _tokens_of(stage, gpus)
        vision_of = functools.partial(_vision_memory, stage, shape)
        parts = {"gpus": gpus, **sizes}
        need = memory(shape, stage.train, tokens=tokens, vision=vision_of(tokens), **parts)
        longest = longest_sequence(shape, stage.train, capacity=capacity, vision_of=vision_of, **parts)
        kept = _gib(need.parameters, 9) + _gib(need.gradients, 8) + _gib(need.optimizer, 8)
        weights = 4 * (sizes["trained"] + sizes["frozen"])
        read = weights + sizes["reference"] * BYTES[stage.train.precision]
        who = "the first rank reads" if stage.train.sharding == "fsdp2" else "every rank reads"
        notes.append(f"{stage.name}: {who}{_gib(read, 0)} GiB of weights on its host")
        if stage.train.save_every:
            notes[-1] += f"; a checkpoint takes{_gib(weights + 8 * sizes['trained'], 0)} GiB of disk"
        if stage.train.offload:
            kept = f"{'on the host':>25}"
            on_host = _gib(read + (4 + 8) * sizes["trained"], 0)
            notes.append(f"{stage.name}: weights, gradients and optimizer take{on_host} GiB of the host in all")
        figures = kept + _gib(need.gathered, 9) + _gib(need.activations, 8) + _gib(need.peak, 10)
        fits = "yes" if need.peak <= capacity else "no"
        lines.append(f"{stage.name:<24}{tokens:>11,}{figures}{fits:>6}{longest:>11,}")
    about = (
        "tokens/GPU: the longest batch that the recipe allows; longest: tokens that fit (of a batch, or of the",
        "one sequence that all GPUs share)",
    )
    return "\n".join([*lines, *about, *notes])


def _gib(num_bytes: float, width: int) -> str:
    """A size as a cell of the table; what is there and rounds to nothing is no 0.00."""
    gib = num_bytes / GIB
    return f" {'<0.01' if 0 < gib < 0.005 else f'{gib:.2f}':>{max(0, width - 1)}}"


def _tokens_of(stage: Planned, gpus: int) -> int:
    """Tokens on one GPU at once, at the longest that the stage allows."""
    if isinstance(stage, DpoStage):
        length = 2 * stage.max_length
    elif isinstance(stage, AlignStage):
        length = 512 if stage.data.icons else stage.data.max_length  # 16 frames of 4 tokens and six questions of 60
    elif stage.data.phases:
        length = max(phase.length * phase.batch for phase in stage.data.phases)
    else:
        length = -(-stage.sequence_length // stage.train.ring_of(gpus))
    return length * stage.train.batch_size


def _parameters_of(stage: Planned, shape: ModelShape) -> dict[str, int]:
    """Parameters trained and frozen, and those of a reference model."""
    decoder = shape.decoder_params + 2 * shape.vocab * shape.hidden
    if isinstance(stage, TextStage):
        return {"trained": decoder, "frozen": 0, "reference": 0}
    tower = _tower_of(shape)
    parts = {"decoder": decoder, "tower": tower.params, "projector": tower.projector_params}
    whole = sum(parts.values())
    if isinstance(stage, DpoStage):
        return {"trained": whole, "frozen": 0, "reference": whole}
    trained = sum(parts[part] for part in stage.parts)
    return {"trained": trained, "frozen": whole - trained, "reference": 0}


def _tower_of(shape: ModelShape) -> TowerShape:
    """The tower that goes with a decoder: CLIP ViT-L/14-336, all of the paper's models', or nano's before a small one.

    The last layer does not run.
    """
    if shape.hidden >= 1024:
        sizes = {"layers": 23, "width": 1024, "intermediate": 4096, "patches": 576, "patch_size": 14}
        return TowerShape(**sizes, hidden=shape.hidden, params=303_500_000)
    nano = NanoSize()
    layer = 4 * nano.vision_width**2 + 2 * nano.vision_width * nano.vision_intermediate
    return TowerShape(
        layers=nano.vision_layers - 1,
        width=nano.vision_width,
        intermediate=nano.vision_intermediate,
        patches=(nano.image_size // nano.patch_size) ** 2,
        patch_size=nano.patch_size,
        hidden=shape.hidden,
        params=nano.vision_layers * layer,
    )


def _shape_of(stage: Stage, recipe: Recipe) -> ModelShape:
    """The decoder's shape: followed back through the stages to a new model, a folder's config.json or a known name."""
    if isinstance(stage, TextStage) and stage.new is not None:
        from vniah.training.nano.vocabulary import words

        return _shape({**stage.new.decoder, "vocab_size": len(words())})
    source = inputs(stage)[0]
    names = {other.name: other for other in recipe.stages}
    if source in names:
        return _shape_of(names[source], recipe)
    if source in KNOWN:
        return KNOWN[source]
    path = Path(source) / "config.json"
    if path.is_file():
        config = read_json(path)
        return _shape(config.get("text_config") or config)
    # What a stage of a shipped recipe would write there, when it has not run yet.
    for other in map(load_recipe, shipped_recipes()):
        for writer in other.stages:
            if other.folder / writer.name / "model" == Path(source):
                return _shape_of(writer, other)
    raise ValueError(f"the shape of {source!r} is not known here; give a local folder, or one of {', '.join(KNOWN)}")


def _shape(config: dict[str, Any]) -> ModelShape:
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    return ModelShape(
        layers=config["num_hidden_layers"],
        hidden=hidden,
        intermediate=config["intermediate_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads", heads),
        head_dim=config.get("head_dim") or hidden // heads,
        vocab=config["vocab_size"],
    )
