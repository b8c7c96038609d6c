"""LLaVA-format data as the alignment stages read it: ids, labels and tiles, in an order that groups lengths.

Shape legend: B samples, T tokens, N tiles of all images of a batch, S the tower's edge.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vniah.files import read_json
from vniah.training.data.index import MANIFEST, Indexer, Source, build_index, read_index
from vniah.training.data.labels import Style, check_conversation, encode, expand_images, pieces
from vniah.training.ranks import rank, wait_for, world_size
from vniah.training.stages import AlignStage

IGNORE = -100
Ints = NDArray[np.int64]


def build_dataset(stage: AlignStage, config: Any, tokenizer: Any, seed: int, folder: Path) -> tuple[Any, Any, Any, Any]:
    """The stage's dataset and collator, its settings, and notes for the report.

    The first rank builds the index, the others wait for it.
    """
    data = stage.data
    sources = [Source(path=path, images=data.images) for path in data.json]
    style = Style(
        template=data.template,
        reference_labels=data.reference_labels,
        newline_after_image=data.newline_after_image,
        single_image_first=data.single_image_first,
    )
    layout = config.layout
    indexer = Indexer(tokenizer=tokenizer, style=style, measure=layout.num_image_tokens, max_length=data.max_length)
    index = folder / "index"
    if rank() == 0:
        build_index(sources, indexer, index, data.max_bad_share, stage.train.workers)
    else:
        wait_for(index / MANIFEST)
    dataset = LlavaSamples(
        index,
        sources,
        style=style,
        tokenizer=tokenizer,
        layout=layout,
        placeholder=config.image_token_index,
        batch=stage.train.batch_size * world_size(),
        group=data.group_by_length,
        seed=seed,
    )
    manifest = read_json(index / MANIFEST)
    notes = {"samples": manifest["samples"], "num_bad": manifest["num_bad"]}
    return dataset, Collator(tokenizer.pad_token_id or 0), stage.train, notes


class LlavaSamples:
    """Samples of an index in training order; as many passes over the data as are asked for.

    Args:
        index: folder of a finished index.
        sources: what the index was built from, in order.
        style: how conversations are written down.
        tokenizer: the decoder's.
        layout: the model's ``VisualLayout``.
        placeholder: the config's image token id.
        batch: samples that go through all ranks at once; grouping keeps such a batch of one length.
        group: group by modality and length, else shuffle.
        seed: of the order, which differs from pass to pass.
    """

    def __init__(
        self,
        index: Path,
        sources: Sequence[Source],
        *,
        style: Style,
        tokenizer: Any,
        layout: Any,
        placeholder: int,
        batch: int,
        group: bool,
        seed: int,
    ) -> None:
        self._table = read_index(index)
        self._sources, self._style, self._layout = list(sources), style, layout
        self._tokenise = lambda text: tokenizer(text, add_special_tokens=False).input_ids
        self._placeholder, self._batch, self._group, self._seed = placeholder, batch, group, seed
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
            shuffled = rng.permutation(len(self._lengths))
            self._orders = {epoch: shuffled}
            if self._group:
                self._orders = {epoch: grouped_order(self._lengths, self._has_image, self._batch, rng)}
        return self._orders[epoch]

    def __getitem__(self, item: int) -> dict[str, Any]:
        if not 0 <= item < len(self):
            raise IndexError(item)
        epoch, place = divmod(item, len(self._lengths))
        return self.sample(int(self.order(epoch)[place]))

    def sample(self, number: int) -> dict[str, Any]:
        """``ids`` and ``labels`` (T,), ``pixel_values`` (N, 3, S, S) and ``image_sizes`` (images, 2).

        Raises:
            BadSampleError: an image that was good when indexed can no longer be read.
        """
        from longva_model.pictures.preprocess import normalise

        sample = json.loads(self._table["sample"][number].as_py())
        images = self._sources[self._table["source"][number].as_py()].open_images(sample)
        turns = check_conversation(sample["conversations"], len(images))
        ids, labels = encode(pieces(turns, self._style), self._tokenise)
        counts = [self._layout.num_image_tokens(image.size) for image in images]
        ids, labels = expand_images(ids, labels, counts, self._placeholder)
        out: dict[str, Any] = {"ids": ids, "labels": labels, "pixel_values": None, "image_sizes": None}
        if images:
            out["pixel_values"] = np.concatenate([normalise(self._layout.tiles(image)) for image in images])
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


class Collator:
    """Samples to a batch, padded on the right with labels of -100; tiles of all images one after another."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        import torch

        longest = max(len(sample["ids"]) for sample in samples)
        ids_BT = torch.full((len(samples), longest), self.pad_id, dtype=torch.long)
        labels_BT = torch.full_like(ids_BT, IGNORE)
        mask_BT = torch.zeros_like(ids_BT)
        for row, sample in enumerate(samples):
            length = len(sample["ids"])
            ids_BT[row, :length] = torch.tensor(sample["ids"])
            labels_BT[row, :length] = torch.tensor(sample["labels"])
            mask_BT[row, :length] = 1
        batch: dict[str, Any] = {"input_ids": ids_BT, "labels": labels_BT, "attention_mask": mask_BT}
        tiles = [sample["pixel_values"] for sample in samples if sample["pixel_values"] is not None]
        if tiles:
            batch["pixel_values"] = torch.from_numpy(np.concatenate(tiles))
            batch["image_sizes"] = torch.tensor([size for s in samples for size in s["image_sizes"] or ()])
        return batch
