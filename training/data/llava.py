"""LLaVA-format data as the alignment stages read it: every sample looked at once, then ids, labels and tiles.

Before training every sample is indexed: what is good, how long, and what is bad. A sample with a missing or corrupt
image, a conversation without an answer or placeholders that do not fit its images is left out, reported with its id and
counted in manifest.json; past a stated share the run stops. Nothing is ever put in its place. Parts are looked at by
several processes, and go on where they were after a kill.

The ``qwen_1_5`` form of a conversation repeats the reference's supervised fine-tuning to the token (reference section
5): answers are learnt, and so are the role markers and line ends of every turn. Each piece is tokenised alone.

Shape legend: B samples, T tokens, N tiles of all images of a batch, S the tower's edge.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vniah.files import read_json, read_json_lines
from vniah.haystack import pictures
from vniah.prompts import DEFAULT_SYSTEM
from vniah.training.checkpoints import check_identity, write_json
from vniah.training.data.shards import read_arrow, write_arrow
from vniah.training.load import load_tokenizer
from vniah.training.processes import (
    BadSampleError,
    check_bad,
    map_parts,
    rank,
    remembered,
    sample_id,
    wait_for,
    world_size,
)
from vniah.training.stages import IGNORE, AlignStage, PrepareImagesStage, VisionData, as_data

PART_SAMPLES = 5_000
MANIFEST = "manifest.json"
READ_AS = "read_as.json"
IMAGE = -200
PLACEHOLDER = "<image>"
Marks: TypeAlias = tuple[tuple[str, ...], str, tuple[tuple[str, bool], ...], tuple[str, ...]]
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
# What stands around a turn: once before all, before its role, behind its role, and behind its text. What is behind the
# role is learnt with the marks in Llama 3's form, and never in Qwen's, as in the originals.
MARKS: dict[str, Marks] = {
    "qwen_1_5": ((), "<|im_start|>", (("\n", False),), ("<|im_end|>", "\n")),
    "llama_3": (
        ("<|begin_of_text|>",),
        "<|start_header_id|>",
        (("<|end_header_id|>", True), ("\n\n", True)),
        ("<|eot_id|>",),
    ),
}
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One data file in LLaVA's format, or a data set that holds its images.

    ``path`` is a .json (list) or .jsonl file, whose image paths are relative to ``images``; else what
    ``datasets.load_dataset`` takes (a Hub id, a folder of parquet files) with columns ``conversations`` and ``image``.
    """

    path: str
    images: str = ""

    @property
    def is_file(self) -> bool:
        return Path(self.path).suffix in (".json", ".jsonl")

    def samples(self) -> list[Any]:
        """All samples, without pixels; those of a data set carry their row. ValueError: no list of samples."""
        if not self.is_file:
            texts = _dataset(self.path).remove_columns("image")
            return [{**row, "row": number} for number, row in enumerate(texts)]
        if self.path.endswith(".jsonl"):
            return [sample for _, sample in read_json_lines(self.path)]
        samples = read_json(self.path, max_bytes=None)
        if not isinstance(samples, list):
            raise ValueError(f"{self.path}: expected a list of samples, got {type(samples).__name__}")
        return samples

    def open_images(self, sample: Any) -> list[Any]:
        """The images of a sample, decoded to RGB. BadSampleError: one is missing or cannot be decoded."""
        if self.is_file:
            given = sample.get("image") if isinstance(sample, dict) else None
            names = _listed(given)
            if not all(isinstance(name, str) and name for name in names):
                raise BadSampleError(f"image must be a path or a list of paths, got {given!r}")
            return [open_image(self.images, name) for name in names]
        try:
            return [pictures.to_rgb(image) for image in _listed(_dataset(self.path)[int(sample["row"])]["image"])]
        except (OSError, SyntaxError, ValueError) as error:
            raise BadSampleError(f"the image of row {sample['row']} cannot be decoded ({error})") from None


@functools.cache
def _dataset(path: str) -> Any:
    from datasets import load_dataset

    return load_dataset(path, split="train")


def _listed(images: Any) -> list[Any]:
    """None, one or several."""
    return [] if images is None else images if isinstance(images, list) else [images]


def open_image(folder: str, name: str) -> Any:
    """An image under ``folder``, decoded. BadSampleError: it is not there, or not below it, or cannot be decoded."""
    root = Path(folder).resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise BadSampleError(f"the image path {name!r} leaves the images folder")
    if not path.is_file():
        raise BadSampleError(f"no image {name!r}")
    try:
        return pictures.open_image(path)
    except (OSError, ValueError) as error:
        raise BadSampleError(f"the image {name!r} cannot be decoded ({error})") from None


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that is tokenised alone, or an image (``None``); learnt or not."""

    text: str | None
    learn: bool = False


def check_conversation(conversations: Any, num_images: int) -> list[tuple[str, str]]:
    """The (role, text) turns of a sample in LLaVA's format, if they can be learnt from (BadSampleError)."""
    if not isinstance(conversations, Sequence) or isinstance(conversations, str) or not conversations:
        raise BadSampleError("no conversation")
    turns: list[tuple[str, str]] = []
    for turn in conversations:
        role, text = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
        if role not in ROLES or not isinstance(text, str):
            raise BadSampleError(f"a turn from {role!r}; expected human and gpt with a text value")
        turns.append((ROLES[role], text))
    if turns[0][0] == "assistant":
        # As the reference does: a conversation that opens with an answer loses it.
        turns = turns[1:]
    for index, (role, text) in enumerate(turns):
        if role != ("user", "assistant")[index % 2]:
            raise BadSampleError(f"turn {index + 1} is the {role}'s; turns must alternate")
        if role == "assistant" and not text.strip():
            raise BadSampleError("an empty answer")
    if len(turns) < 2 or turns[-1][0] != "assistant":
        raise BadSampleError("a conversation without an answer at its end")
    asked = sum(text.count(PLACEHOLDER) for _, text in turns)
    if asked != num_images:
        raise BadSampleError(f"{asked} {PLACEHOLDER} placeholders for {num_images} images")
    return turns


def pieces(turns: Sequence[tuple[str, str]], style: VisionData) -> list[Piece]:
    """The pieces of a conversation in the given style."""
    if style.template == "plain":
        return _plain(turns)
    if style.template not in MARKS:
        raise ValueError(f"cannot train with the template {style.template!r}; expected {', '.join(MARKS)} or plain")
    marks, (first, before, behind, closing) = style.reference_labels, MARKS[style.template]
    out = [Piece(mark, marks) for mark in first]
    for role, text in [("system", DEFAULT_SYSTEM), *turns]:
        answer = role == "assistant"
        out += [Piece(before, marks), Piece(role), *(Piece(mark, marks and learn) for mark, learn in behind)]
        out += [Piece(text, answer)] if role != "user" else _with_images(text, style)
        out += [Piece(mark, answer or marks) for mark in closing]
    return out


def _with_images(text: str, style: VisionData) -> list[Piece]:
    """A user's turn: a line end after each image, and one more where the text brings its own (reference)."""
    if style.single_image_first and text.count(PLACEHOLDER) == 1 and not text.startswith(PLACEHOLDER):
        # As the original trains, and as everybody asks.
        text = f"{PLACEHOLDER}\n{text.replace(PLACEHOLDER, '').strip()}"
    first, *rest = text.split(PLACEHOLDER)
    out = [Piece(first)] if first else []
    for part in rest:
        if style.newline_after_image == "once":
            part = part.removeprefix("\n")
        out += [Piece(None), Piece("\n"), *([Piece(part)] if part else [])]
    return out


def _plain(turns: Sequence[tuple[str, str]]) -> list[Piece]:
    """Images, then captions, each with a line end: what stage 1 learns from."""
    images = sum(text.count(PLACEHOLDER) for _, text in turns)
    captions = [Piece(text.rstrip("\n") + "\n", True) for role, text in turns if role == "assistant"]
    return [Piece(None)] * images + captions


def encode(parts: Sequence[Piece], tokenise: Callable[[str], list[int]]) -> tuple[list[int], list[int]]:
    """Ids and labels; an image is one ``IMAGE`` with no label."""
    ids: list[int] = []
    labels: list[int] = []
    for piece in parts:
        new = [IMAGE] if piece.text is None else tokenise(piece.text)
        ids += new
        labels += new if piece.learn else [IGNORE] * len(new)
    return ids, labels


def expand_images(
    ids: Sequence[int], labels: Sequence[int], tokens_per_image: Sequence[int], placeholder: int
) -> tuple[list[int], list[int]]:
    """Put ``tokens_per_image[i]`` placeholder ids in the place of the i-th image."""
    counts = iter(tokens_per_image)
    repeats = [next(counts) if token == IMAGE else 1 for token in ids]
    assert next(counts, None) is None, "an image without a place"
    out_ids = [
        placeholder if token == IMAGE else token for token, n in zip(ids, repeats, strict=True) for _ in range(n)
    ]
    return out_ids, [label for label, n in zip(labels, repeats, strict=True) for _ in range(n)]


@dataclass(frozen=True, slots=True)
class SampleReader:
    """Opens the images of a sample, checks its conversation, and writes it down as tokens.

    A sample goes with the number of its source. ``layout`` is the model's ``VisualLayout``.
    """

    sources: list[Source]
    data: VisionData
    tokenizer: Any
    layout: Any

    def read(self, sample: Any, source: int) -> tuple[list[int], list[int], list[Any]]:
        """Ids and labels, an image being one ``IMAGE``, and the images. BadSampleError: why it cannot be used."""
        images = self.sources[source].open_images(sample)
        turns = check_conversation(sample.get("conversations") if isinstance(sample, dict) else None, len(images))
        ids, labels = encode(pieces(turns, self.data), lambda t: self.tokenizer(t, add_special_tokens=False).input_ids)
        return ids, labels, images

    def measure(self, sample: Any, source: int) -> tuple[int, bool]:
        """Length in tokens and whether there are images. BadSampleError: also where it is too long; nothing is cut."""
        ids, labels, images = self.read(sample, source)
        if all(label < 0 for label in labels):
            raise BadSampleError("nothing to learn")
        length = len(ids) - len(images) + sum(self.layout.num_image_tokens(image.size) for image in images)
        if length > self.data.max_length:
            raise BadSampleError(f"{length} tokens, longer than max_length {self.data.max_length}")
        return length, bool(images)


def build_index(reader: SampleReader, folder: Path, max_bad_share: float, workers: int = 1) -> dict[str, Any]:
    """Index all samples to part-*.arrow (columns source, sample, num_tokens, has_image) and manifest.json.

    What is written does not depend on the number of ``workers``.

    Raises:
        ValueError: more than ``max_bad_share`` of the samples are bad, none is good, or the samples are others than
            those that this folder was indexed from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[tuple[int, int, list[tuple[int, Any]]]] = []
    for number, source in enumerate(reader.sources):
        samples = list(enumerate(source.samples()))
        for start in range(0, len(samples), PART_SAMPLES):
            parts.append((len(parts), number, samples[start : start + PART_SAMPLES]))
    reports = map_parts(functools.partial(_index_part, reader, folder), parts, workers)
    good, bad = sum(report["good"] for report in reports), [line for report in reports for line in report["bad"]]
    manifest = {"samples": good, "num_bad": len(bad), "bad": bad, "parts": len(reports)}
    forget = [folder / f"part-{number:05d}.json" for number, report in enumerate(reports) if report["num_bad"]]
    try:
        more = f" (all in {folder / 'bad.json'})"
        check_bad("samples", bad, good + len(bad), max_bad_share, more=more, forget=forget)
    except ValueError:
        write_json(folder / "bad.json", manifest)
        raise
    if not good:
        raise ValueError(f"no samples in {', '.join(source.path for source in reader.sources)}")
    check_identity(folder, {"samples": hashlib.sha256(json.dumps(reports).encode()).hexdigest()})
    write_json(folder / MANIFEST, manifest)
    return manifest


def _index_part(reader: SampleReader, folder: Path, part: tuple[int, int, list[tuple[int, Any]]]) -> dict[str, Any]:
    """Index a part (its number, its source's, numbered samples) unless these very samples are indexed; its report."""
    number, source, samples = part
    path = folder / f"part-{number:05d}.json"
    return remembered(path, [source, samples], lambda: _look(reader, path.with_suffix(".arrow"), part))


def _look(reader: SampleReader, path: Path, part: tuple[int, int, list[tuple[int, Any]]]) -> dict[str, Any]:
    _, source, samples = part
    columns: dict[str, list[Any]] = {"source": [], "sample": [], "num_tokens": [], "has_image": []}
    bad: list[str] = []
    for row, sample in samples:
        try:
            length, has_image = reader.measure(sample, source)
        except BadSampleError as error:
            bad.append(f"{sample_id(sample, row)}: {error}")
            continue
        for column, value in zip(columns.values(), (source, json.dumps(sample), length, has_image), strict=True):
            column.append(value)
    write_arrow(path, columns)
    return {"good": len(columns["sample"]), "num_bad": len(bad), "bad": bad}


def run(stage: PrepareImagesStage, folder: Path, *, seed: int, resolve: Callable[[str], str]) -> dict[str, Any]:
    """The prepare_images stage: ``folder/index``, built by as many workers as are asked for and no GPU.

    Raises as ``build_index``; ValueError: a decoder without ``tower_from``.
    """
    from transformers import AutoConfig, CLIPVisionConfig

    from longva_model import LongVAConfig

    source, data = resolve(stage.model_from), stage.data
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    if config.model_type != "longva":
        if stage.tower_from is None:
            raise ValueError(f"{source} is a {config.model_type} decoder; stage {stage.name!r} needs tower_from")
        tower = CLIPVisionConfig.from_pretrained(resolve(stage.tower_from), trust_remote_code=False)
        merge = "spatial_unpad" if data.merge == "anyres" else "unires"
        config = LongVAConfig(text_config=config, vision_config=tower, mm_patch_merge_type=merge)
    if data.merge == "square":
        config.image_aspect_ratio = None
    reader = SampleReader(_sources(data), data, load_tokenizer(source), config.layout)
    manifest = build_index(reader, folder / "index", data.max_bad_share, stage.workers)
    write_json(folder / "index" / READ_AS, _read_as(data, config.layout))
    return {key: manifest[key] for key in ("samples", "num_bad")}


def _sources(data: VisionData) -> list[Source]:
    return [Source(path=path, images=data.images) for path in data.json]


def _read_as(data: VisionData, layout: Any) -> dict[str, Any]:
    """What an index depends on beside its samples, as plain data."""
    own = {
        key: value for key, value in as_data(data).items() if key not in ("index", "group_by_length", "max_bad_share")
    }
    return {"data": own, "layout": layout.to_dict()}


def build_dataset(
    stage: AlignStage, config: Any, tokenizer: Any, seed: int, folder: Path, resolve: Callable[[str], str]
) -> tuple[Any, Any, Any]:
    """The stage's dataset and collator, and notes for the report.

    The index is that of a prepare_images stage; unless one is named the first rank builds it and the others wait.

    Raises:
        ValueError: an index of other data, or for another model.
    """
    data, index = stage.data, folder / "index"
    reader = SampleReader(_sources(data), data, tokenizer, config.layout)
    if data.index:
        index = Path(resolve(data.index))
        there, wanted = read_json(index / READ_AS), json.loads(json.dumps(_read_as(data, config.layout)))
        if different := [
            f"{part}.{key}" for part in wanted for key in wanted[part] if there[part].get(key) != wanted[part][key]
        ]:
            raise ValueError(
                f"{index} was prepared otherwise than stage {stage.name!r} reads it: {', '.join(different)}"
            )
    elif rank() == 0:
        build_index(reader, index, data.max_bad_share, stage.train.workers)
    else:
        wait_for(index / MANIFEST)
    batch = stage.train.batch_size * world_size()
    dataset = LlavaSamples(index, reader, placeholder=config.image_token_index, batch=batch, seed=seed)
    manifest = read_json(index / MANIFEST)
    notes = {key: manifest[key] for key in ("samples", "num_bad")}
    return dataset, Collator(tokenizer.pad_token_id or 0), notes


class LlavaSamples:
    """Samples of an index in training order; as many ``passes`` over the data as are asked for.

    Args:
        index: folder of a finished index.
        reader: what it was built with.
        placeholder: the config's image token id.
        batch: samples that go through all ranks at once; grouping keeps such a batch of one length.
        seed: of the order, which differs from pass to pass.
    """

    def __init__(self, index: Path, reader: SampleReader, *, placeholder: int, batch: int, seed: int) -> None:
        import pyarrow as pa

        parts = range(read_json(index / MANIFEST)["parts"])
        tables = [read_arrow(index / f"part-{number:05d}.arrow") for number in parts]
        self._table = pa.concat_tables([table for table in tables if table.num_rows])
        self._reader, self._placeholder, self._batch, self._seed = reader, placeholder, batch, seed
        self._lengths = self._table["num_tokens"].to_numpy()
        self._has_image = np.array(self._table["has_image"].to_pylist(), bool)
        self._orders: dict[int, Ints] = {}
        self.passes = 1

    def __len__(self) -> int:
        return len(self._lengths) * self.passes

    def order(self, epoch: int) -> Ints:
        """Sample numbers in the order of one pass."""
        if epoch not in self._orders:
            rng = np.random.default_rng((self._seed, epoch, 23))
            order = rng.permutation(len(self._lengths))
            if self._reader.data.group_by_length:
                order = grouped_order(self._lengths, self._has_image, self._batch, rng)
            self._orders = {epoch: order}
        return self._orders[epoch]

    def __getitem__(self, item: int) -> dict[str, Any]:
        if not 0 <= item < len(self):
            raise IndexError(item)
        epoch, place = divmod(item, len(self._lengths))
        return self.sample(int(self.order(epoch)[place]))

    def sample(self, number: int) -> dict[str, Any]:
        """``ids`` and ``labels`` (T,), ``pixel_values`` uint8 (N, S, S, 3) and ``image_sizes`` (images, 2).

        BadSampleError: an image that was good when indexed can no longer be read.
        """
        sample, source = (self._table[column][number].as_py() for column in ("sample", "source"))
        ids, labels, images = self._reader.read(json.loads(sample), source)
        layout = self._reader.layout
        counts = [layout.num_image_tokens(image.size) for image in images]
        ids, labels = expand_images(ids, labels, counts, self._placeholder)
        out: dict[str, Any] = {"ids": ids, "labels": labels, "pixel_values": None, "image_sizes": None}
        if images:
            out["pixel_values"] = np.concatenate([layout.tiles(image) for image in images])
            out["image_sizes"] = [(image.height, image.width) for image in images]
        return out


def grouped_order(lengths: Ints, has_image: NDArray[np.bool_], batch: int, rng: np.random.Generator) -> Ints:
    """An order in which each run of ``batch`` samples is of one modality and of similar length.

    Samples of a modality are shuffled and sorted by length within windows of 32 batches; then whole batches are
    shuffled. What does not fill a batch comes last, mixed.
    """
    batches: list[Ints] = []
    rest: list[Ints] = []
    for members in (np.flatnonzero(has_image), np.flatnonzero(~has_image)):
        members = rng.permutation(members)
        window = 32 * batch
        for start in range(0, len(members), window):
            part = members[start : start + window]
            part = part[np.argsort(-lengths[part], kind="stable")]
            whole = len(part) // batch * batch
            batches += list(part[:whole].reshape(-1, batch))
            rest.append(part[whole:])
    order = [batches[i] for i in rng.permutation(len(batches))]
    return np.concatenate([*order, *rest]).astype(np.int64)


@dataclass(frozen=True)
class Collator:
    """Samples to a batch, padded on the right with labels of -100; tiles of all images one after another, as bytes."""

    pad_id: int

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """``input_ids``, ``labels`` and ``attention_mask`` (B, T); with images ``pixel_values`` and ``image_sizes``."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        def padded(key: str, filler: int) -> torch.Tensor:
            return pad_sequence([torch.tensor(sample[key]) for sample in samples], True, filler)

        mask_BT = pad_sequence([torch.ones(len(sample["ids"]), dtype=torch.long) for sample in samples], True)
        batch = {"input_ids": padded("ids", self.pad_id), "labels": padded("labels", IGNORE), "attention_mask": mask_BT}
        tiles = [sample["pixel_values"] for sample in samples if sample["pixel_values"] is not None]
        if tiles:
            batch["pixel_values"] = torch.from_numpy(np.concatenate(tiles))
            batch["image_sizes"] = torch.tensor([size for s in samples for size in s["image_sizes"] or ()])
        return batch
