"""What a recipe may say: the ``train`` section that its stages share, and the stages, frozen and self-checking.

Sizes are tokens, learning rates are AdamW's. Where a stage reads from (``model_from`` and the like) it names a stage
before it, a folder or a Hub id. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

IGNORE = -100  # the label of what is not learnt
# Logits of a chunk of the chunked loss, 512 MB in fp32: the loss and the memory plan go by it.
CHUNK_ELEMENTS = 1 << 27


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """How a stage is optimised. Batch sizes are per device (under ``ring``: all devices share a sequence).

    Attributes:
        steps: optimizer steps; 0 means by ``epochs``.
        warmup: share of all steps below 1, else a number of steps.
        schedule: "cosine_min" falls to ``min_lr`` and not to 0.
        tower_lr: learning rate of the vision tower; ``None`` is ``lr``. ``projector_lr`` likewise.
        checkpointing: "full" recomputes each layer; "offload" also moves the layer inputs to the host.
        tile_tokens: run the decoder's MLPs and norms in tiles of so many tokens; 0 runs them whole.
        attention: transformers' attention implementation; "ring" shards every sequence over several ranks.
        ring: with attention: ring, how many ranks share a sequence; 0 is all. Others go through other sequences.
        sharding: "fsdp2" shards weights, gradients and optimizer over all ranks.
        offload: with fsdp2, keep what is sharded in host memory.
        threads: CPU threads of this stage, which sums depend on in their last bits; 0 leaves it to the machine.
    """

    lr: float
    steps: int = 0
    epochs: float = 0.0
    batch_size: int = 1
    accumulation: int = 1
    schedule: Literal["constant", "linear", "cosine", "cosine_min"] = "constant"
    min_lr: float = 0.0
    warmup: float = 0.0
    tower_lr: float | None = None
    projector_lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    precision: Literal["fp32", "bf16"] = "bf16"
    checkpointing: Literal["none", "full", "offload"] = "none"
    tile_tokens: int = 0
    attention: str = "sdpa"
    ring: int = 0
    compile: bool = False
    sharding: Literal["none", "fsdp2"] = "none"
    offload: bool = False
    log_every: int = 10
    save_every: int = 0
    keep: int = 2
    report_to: tuple[str, ...] = ()
    workers: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        if self.steps < 0 or self.epochs < 0 or not (self.steps or self.epochs):
            raise ValueError(f"give steps or epochs above 0, got steps={self.steps}, epochs={self.epochs}")
        for name in ("lr", "min_lr", "tower_lr", "projector_lr"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"learning rates must not be negative, got {name}={getattr(self, name)}")
        for name in ("batch_size", "accumulation", "log_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.offload and self.sharding == "none":
            raise ValueError("offload needs sharding: fsdp2")
        for name in (
            "save_every",
            "warmup",
            "ring",
            "workers",
            "threads",
            "tile_tokens",
            "weight_decay",
            "max_grad_norm",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.ring and self.attention != "ring":
            raise ValueError(f"ring: {self.ring} goes with attention: ring; got attention: {self.attention}")
        if self.attention == "ring" and self.batch_size != 1:
            raise ValueError(
                f"attention: ring shares one sequence among ranks, so batch_size is 1; got {self.batch_size}"
            )

    def ring_of(self, ranks: int) -> int:
        """How many of so many ranks share a sequence. ValueError: rings of that size do not share them out."""
        if self.attention != "ring":
            return 1
        if self.ring and ranks % self.ring:
            raise ValueError(
                f"{ranks} ranks are no whole number of rings of {self.ring}; choose a ring that divides them"
            )
        return self.ring or ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class NanoSize:
    """The nano model's shape; ``new: nano`` of a text or tower stage builds it from nothing."""

    hidden_size: int = 128
    num_layers: int = 3
    num_heads: int = 4
    num_kv_heads: int = 2
    intermediate_size: int = 352
    image_size: int = 32
    patch_size: int = 8
    vision_width: int = 96
    vision_layers: int = 4
    vision_heads: int = 4
    vision_intermediate: int = 384

    @property
    def decoder(self) -> dict[str, int]:
        """The decoder's shape under the names of transformers' configs."""
        return {
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthPhase:
    """From step ``start`` on, sequences of ``length`` tokens, ``batch`` of them a step."""

    start: int
    length: int
    batch: int

    def __post_init__(self) -> None:
        if self.start < 0 or self.length < 32 or self.batch < 1:
            raise ValueError(f"a length phase needs start >= 0, length >= 32, batch >= 1; got {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextData:
    """Text to train on: ``shards`` of a ``prepare_text`` stage (its name or a folder), or synthetic ``phases``.

    ``repeat_share`` and ``number_share``: of synthetic rows, those that repeat and those in the wording of text NIAH.
    """

    shards: str | None = None
    phases: tuple[LengthPhase, ...] = ()
    repeat_share: float = 0.5
    number_share: float = 0.0

    def __post_init__(self) -> None:
        if bool(self.shards) == bool(self.phases):
            raise ValueError("give either shards (prepared text) or phases (synthetic text)")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareTextStage:
    """Tokenise, upsample and pack a corpus into shards (``data/prepare.py``).

    Attributes:
        total_tokens: tokens to choose, separators not counted.
        long_document: a document is long from so many tokens on.
        short_share: share of the shorter documents that is kept; long ones all are (Fu et al. 2024).
        held_out: sequences at the end of the mixture that nobody trains on; their loss is watched.
        separator: token between documents; unless given the tokenizer's beginning (section 3.1), else end of text.
    """

    name: str
    tokenizer: str
    source: str = "cerebras/SlimPajama-627B"
    split: str = "train"
    text_column: str = "text"
    domain_column: str = "meta.redpajama_set_name"
    total_tokens: int = 1_000_000_000
    sequence_length: int = 224_000
    long_document: int = 4_096
    short_share: float = 0.1
    held_out: int = 0
    separator: str = ""
    shard_sequences: int = 64
    workers: int = 8
    max_bad_share: float = 0.01
    kind: Literal["prepare_text"] = "prepare_text"

    def __post_init__(self) -> None:
        if not 0 <= self.short_share <= 1:
            raise ValueError(f"short_share must be between 0 and 1, got {self.short_share}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextStage:
    """Next-token training of the language model alone: pre-training or context extension (paper section 3.1)."""

    name: str
    train: Train
    data: TextData
    model_from: str | None = None
    new: NanoSize | None = None
    rope_theta: float | None = None
    sequence_length: int = 224_000
    max_positions: int | None = None
    kind: Literal["text"] = "text"

    def __post_init__(self) -> None:
        if bool(self.model_from) == bool(self.new):
            raise ValueError("give either model_from (a stage, folder or Hub id) or new (a shape to start from)")
        if self.data.phases and (self.train.batch_size != 1 or not self.train.steps):
            raise ValueError("phases say their own batch sizes: give train.steps, and no batch_size or epochs")

    def sequences_per_step(self, ranks: int) -> int:
        """Whole sequences that an optimizer step takes: under ``ring`` several ranks share each."""
        return self.train.batch_size * self.train.accumulation * ranks // self.train.ring_of(ranks)


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerStage:
    """Supervised training of the nano vision tower; its heads are thrown away.

    ``feature_penalty`` weighs the mean square of the features in the loss. CLIP's have a size near 1; without it
    a supervised tower's grow large, and visual tokens drown what the decoder adds to them.
    """

    name: str
    train: Train
    new: NanoSize = NanoSize()
    pool_images: int = 24_000
    film_share: float = 0.3
    feature_penalty: float = 0.02
    kind: Literal["tower"] = "tower"


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionData:
    """Image data: LLaVA-format ``json`` files with ``images`` under a folder, or the ``icons`` generator.

    Attributes:
        index: a prepare_images stage that has looked at this data (its name, or its folder); unless given the stage
            looks itself, on its first rank.
        template: "plain" (caption after the image) or a chat template; labels as in the reference's SFT
            when ``reference_labels`` (role markers carry loss too), else on answers alone.
        newline_after_image: "once" asks as inference does; "reference" keeps the second newline of the
            original's training (reference section 5).
        single_image_first: the one image of a turn goes before its text, wherever the data has it, as in the
            original's training and at inference; turns of several images stay as they are.
        merge: how an image becomes tokens; "square" is one centre-cropped tile without pooling.
        text_share: with icons, the share of steps on text alone, of up to ``text_length`` tokens: what the
            language model has learnt of it fades otherwise.
    """

    json: tuple[str, ...] = ()
    images: str = ""
    index: str | None = None
    template: str = "qwen_1_5"
    reference_labels: bool = True
    newline_after_image: Literal["once", "reference"] = "once"
    single_image_first: bool = True
    merge: Literal["unires", "anyres", "square"] = "unires"
    max_length: int = 32_768
    group_by_length: bool = True
    max_bad_share: float = 0.01
    icons: bool = False
    max_tiles: int = 16
    max_questions: int = 6
    film_share: float = 0.3
    pool_images: int = 24_000
    text_share: float = 0.0
    text_length: int = 0

    def __post_init__(self) -> None:
        if bool(self.json) == self.icons:
            raise ValueError("give either json files (LLaVA format) or icons: true (generated)")
        if not 0 <= self.text_share < 1:
            raise ValueError(f"text_share must be at least 0 and below 1, got {self.text_share}")
        if self.text_share and not (self.icons and self.text_length >= 32):
            raise ValueError("text_share goes with icons: true and a text_length of at least 32 tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareImagesStage:
    """Look at every sample of LLaVA-format data once, on many workers and no GPU (``data/llava.py``).

    ``model_from`` and ``tower_from`` are those of the align stage that reads it, and so is ``data``.
    """

    name: str
    model_from: str
    data: VisionData
    tower_from: str | None = None
    workers: int = 8
    kind: Literal["prepare_images"] = "prepare_images"

    def __post_init__(self) -> None:
        if not self.data.json or self.data.index:
            raise ValueError("a prepare_images stage needs data.json, and makes the index itself")


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignStage:
    """Image-text alignment (paper section 3.2): ``parts`` says what is trained.

    ``tower_from`` and ``model_from`` assemble a new LongVA; a ``model_from`` that is one already needs no tower.
    """

    name: str
    train: Train
    data: VisionData
    model_from: str
    tower_from: str | None = None
    parts: tuple[Literal["tower", "projector", "decoder"], ...] = ("projector",)
    kind: Literal["align"] = "align"

    def __post_init__(self) -> None:
        if not self.parts or len(set(self.parts)) != len(self.parts):
            raise ValueError(f"parts must name tower, projector or decoder, each once; got {list(self.parts)}")
        if self.train.attention == "ring":
            raise ValueError("attention: ring shards long text; an align stage takes sdpa, flash_attention_2 or eager")


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrateStage:
    """A nano LongVA put together, its tower and projector fitted to the decoder's words (``nano/calibrate.py``).

    ``data`` is that of the alignment that follows (icons); ``background`` weighs pictures without an icon in the loss.
    """

    name: str
    train: Train
    data: VisionData
    model_from: str
    tower_from: str
    background: float = 2.0
    kind: Literal["calibrate"] = "calibrate"

    def __post_init__(self) -> None:
        if not self.data.icons:
            raise ValueError("a calibrate stage fits pictures of the icons generator: give data.icons: true")
        if self.background < 0 or self.train.batch_size < 2:
            raise ValueError(
                f"background must not be negative, and a batch has pictures of both kinds (at least 2); "
                f"got {self.background} and {self.train.batch_size}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class DpoStage:
    """Direct preference optimisation on video frames (LLaVA-Hound), by TRL, whose own loss and optimizer it has."""

    name: str
    train: Train
    model_from: str
    json: tuple[str, ...]
    videos: str
    num_frames: int = 10
    beta: float = 0.1
    max_length: int = 32_768
    max_bad_share: float = 0.01
    kind: Literal["dpo"] = "dpo"

    def __post_init__(self) -> None:
        train = self.train
        if train.attention == "ring" or train.checkpointing == "offload":
            raise ValueError("a dpo stage takes no attention: ring or checkpointing: offload")
        if train.tower_lr is not None or train.projector_lr is not None:
            raise ValueError("a dpo stage has one learning rate: leave out tower_lr and projector_lr")
        if self.num_frames < 1 or self.beta <= 0:
            raise ValueError(f"num_frames and beta must be positive, got {self.num_frames} and {self.beta}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateStage:
    """What a trained model can do: V-NIAH, text NIAH and the loss on held-out text, each where it is asked for.

    Attributes:
        frames: of V-NIAH's grid; "" leaves V-NIAH out.
        needle_set: V-NIAH's needles, as the task takes them; unless given ``needles`` icons of ``needle_seed``.
        rope_thetas: try each as the RoPE base and keep the best of V-NIAH; the model's own unless given.
        text_lengths: of text NIAH, as the task takes them ("32K,128K"); "" leaves it out.
        text_haystack: a folder of texts or a data set; made up unless given.
        held_out: a prepare_text stage that held sequences out (its name, or its folder of shards).
    """

    name: str
    model_from: str
    frames: str = "64,128,256,512,1000"
    depths: str = "0-100:25"
    needles: int = 10
    needle_seed: int = 0
    haystack: str = "synthetic:0"
    needle_set: str = ""
    dtype: Literal["float32", "bfloat16"] = "float32"
    text_lengths: str = ""
    text_depths: str = "0-100:25"
    text_samples: int = 1
    text_haystack: str = "builtin"
    held_out: str | None = None
    rope_thetas: tuple[float, ...] = ()
    require_accuracy: float = 0.0
    kind: Literal["evaluate"] = "evaluate"


Stage: TypeAlias = (
    PrepareTextStage
    | PrepareImagesStage
    | TextStage
    | TowerStage
    | CalibrateStage
    | AlignStage
    | DpoStage
    | EvaluateStage
)
KINDS: dict[str, type[Any]] = {kind.__dataclass_fields__["kind"].default: kind for kind in get_args(Stage)}
# What may change between a run and its resumption: it moves no weight.
WITHOUT_EFFECT = frozenset(
    ("about", "output", "parallel", "workers", "report_to", "log_every", "save_every", "keep", "max_bad_share")
)


def inputs(stage: Stage) -> tuple[str, ...]:
    """Everything a stage reads: names of stages, folders or Hub ids."""
    links = [getattr(stage, key, None) for key in ("model_from", "tower_from")]
    if isinstance(stage, TextStage):
        links.append(stage.data.shards)
    if isinstance(stage, EvaluateStage):
        links.append(stage.held_out)
    if isinstance(stage, AlignStage):
        links.append(stage.data.index)
    return tuple(link for link in links if link)


def as_data(item: Any) -> Any:
    """A recipe or stage as plain data, for manifests."""
    return json.loads(json.dumps(dataclasses.asdict(item)))
