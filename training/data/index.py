"""Every sample of an image-text data set looked at once, before training: what is good, how long, and what is bad.

A sample with a missing or corrupt image, a conversation without an answer or placeholders that do not fit its
images is left out, reported with its id and counted in manifest.json; past a stated share the run stops. Nothing
is ever put in its place. Parts are looked at by several processes, and go on where they were after a kill.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vniah.files import read_json, read_json_lines
from vniah.training.data.labels import BadSampleError, Style, check_conversation, encode, pieces, sample_id
from vniah.training.data.processes import map_parts
from vniah.training.data.shards import read_arrow, write_arrow

PART_SAMPLES = 5_000
MANIFEST = "manifest.json"
Measure = Callable[[tuple[int, int]], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One data file in LLaVA's format, or a data set that holds its images.

    Attributes:
        path: a .json (list) or .jsonl file; else what ``datasets.load_dataset`` takes (a Hub id, a folder of
            parquet files) with columns ``conversations`` and ``image``.
        images: folder that a file's image paths are relative to.
    """

    path: str
    images: str = ""

    @property
    def is_file(self) -> bool:
        return Path(self.path).suffix in (".json", ".jsonl")

    def samples(self) -> list[Any]:
        """All samples, without pixels; those of a data set carry their row.

        Raises:
            ValueError: the file is not JSON, or not a list of samples.
        """
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
        """The images of a sample, decoded to RGB.

        Raises:
            BadSampleError: one that is missing or cannot be decoded.
        """
        if self.is_file:
            return [open_image(self.images, name) for name in image_names(sample)]
        from vniah.haystack.pictures import to_rgb

        try:
            found = _dataset(self.path)[int(sample["row"])]["image"]
            images = [] if found is None else found if isinstance(found, list) else [found]
            return [to_rgb(image) for image in images]
        except (OSError, SyntaxError, ValueError) as error:
            raise BadSampleError(f"the image of row {sample['row']} cannot be decoded ({error})") from None


@functools.cache
def _dataset(path: str) -> Any:
    from datasets import load_dataset

    return load_dataset(path, split="train")


def image_names(sample: Any) -> list[str]:
    """The image paths of a sample: none, one or several.

    Raises:
        BadSampleError: something that is no path.
    """
    given = sample.get("image") if isinstance(sample, dict) else None
    names = [] if given is None else given if isinstance(given, list) else [given]
    if not all(isinstance(name, str) and name for name in names):
        raise BadSampleError(f"image must be a path or a list of paths, got {given!r}")
    return names


def open_image(folder: str, name: str) -> Any:
    """An image under ``folder``, decoded.

    Raises:
        BadSampleError: a path that leaves the folder, no file, or one that cannot be decoded.
    """
    from vniah.haystack import pictures

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexer:
    """Measures samples: what a process needs to index a part.

    Attributes:
        tokenizer: name or folder.
        style: how conversations are written down.
        measure: visual tokens of an image of (width, height).
        max_length: longest sample in tokens; a longer one is bad, since nothing is cut.
    """

    tokenizer: Any
    style: Style
    measure: Measure
    max_length: int

    def look(self, sample: Any, source: Source) -> tuple[int, bool]:
        """Length in tokens and whether there are images.

        Raises:
            BadSampleError: why the sample cannot be used.
        """
        images = source.open_images(sample)
        turns = check_conversation(sample.get("conversations") if isinstance(sample, dict) else None, len(images))
        visual = sum(self.measure(image.size) for image in images)
        ids, labels = encode(pieces(turns, self.style), lambda t: self.tokenizer(t, add_special_tokens=False).input_ids)
        if all(label < 0 for label in labels):
            raise BadSampleError("nothing to learn")
        length = len(ids) - len(images) + visual
        if length > self.max_length:
            raise BadSampleError(f"{length} tokens, longer than max_length {self.max_length}")
        return length, bool(images)


def build_index(
    sources: list[Source], indexer: Indexer, folder: Path, max_bad_share: float, workers: int = 1
) -> dict[str, Any]:
    """Index all sources to part-*.arrow (columns source, sample, num_tokens, has_image) and manifest.json.

    Args:
        sources: what to look at.
        indexer: how.
        folder: where the index goes.
        max_bad_share: of the samples; the run stops above it.
        workers: processes that look at samples; what is written does not depend on it.

    Raises:
        ValueError: more than ``max_bad_share`` of the samples are bad, none is good, or the samples are others than
            those that this folder was indexed from.
    """
    from vniah.training.identity import check_identity, write_json

    folder.mkdir(parents=True, exist_ok=True)
    parts = [_Part(number, *chunk) for number, chunk in enumerate(_chunks(sources))]
    reports = map_parts(_Look(sources, indexer, folder), parts, workers)
    good, bad = sum(r["good"] for r in reports), sum(r["num_bad"] for r in reports)
    lines = [line for report in reports for line in report["bad"]]
    manifest = {"samples": good, "num_bad": bad, "bad": lines, "parts": len(reports)}
    if bad > max_bad_share * (good + bad):
        # Mended samples are to be looked at again, not remembered as bad.
        for number, report in enumerate(reports):
            if report["num_bad"]:
                (folder / f"part-{number:05d}.json").unlink()
        write_json(folder / "bad.json", manifest)
        raise ValueError(
            f"{bad} of {good + bad} samples are bad, more than the share of {max_bad_share:g} allowed "
            f"(all in {folder / 'bad.json'}): {'; '.join(lines[:3])}"
        )
    if not good:
        raise ValueError(f"no samples in {', '.join(source.path for source in sources)}")
    check_identity(folder, {"samples": hashlib.sha256(json.dumps(reports).encode()).hexdigest()})
    write_json(folder / MANIFEST, manifest)
    return manifest


@dataclass(frozen=True, slots=True)
class _Part:
    """Samples of one source that are looked at together: (number in the source, sample)."""

    number: int
    source: int
    samples: list[tuple[int, Any]]


@dataclass(frozen=True, slots=True)
class _Look:
    """Index a part unless these very samples are indexed already; its report."""

    sources: list[Source]
    indexer: Indexer
    folder: Path

    def __call__(self, part: _Part) -> dict[str, Any]:
        from vniah.training.identity import write_json

        path = self.folder / f"part-{part.number:05d}.json"
        fingerprint = hashlib.sha256(json.dumps([part.source, part.samples]).encode()).hexdigest()
        if path.is_file():
            done = read_json(path)
            if done.get("fingerprint") == fingerprint:
                return dict(done)
        source = self.sources[part.source]
        report = {"fingerprint": fingerprint, **_index_part(source, part.source, part.samples, self.indexer, path)}
        write_json(path, report)
        return report


def _chunks(sources: list[Source]) -> Iterator[tuple[int, list[tuple[int, Any]]]]:
    for number, source in enumerate(sources):
        samples = list(enumerate(source.samples()))
        for start in range(0, len(samples), PART_SAMPLES):
            yield number, samples[start : start + PART_SAMPLES]


def _index_part(
    source: Source, number: int, chunk: list[tuple[int, Any]], indexer: Indexer, path: Path
) -> dict[str, Any]:
    columns: dict[str, list[Any]] = {"source": [], "sample": [], "num_tokens": [], "has_image": []}
    bad: list[str] = []
    for row, sample in chunk:
        try:
            length, has_image = indexer.look(sample, source)
        except BadSampleError as error:
            bad.append(f"{sample_id(sample, row)}: {error}")
            continue
        columns["source"].append(number)
        columns["sample"].append(json.dumps(sample))
        columns["num_tokens"].append(length)
        columns["has_image"].append(has_image)
    write_arrow(path.with_suffix(".arrow"), columns)
    return {"good": len(columns["sample"]), "num_bad": len(bad), "bad": bad}


def read_index(folder: Path) -> Any:
    """All parts of an index as one memory-mapped table.

    Raises:
        FileNotFoundError: the index was not finished.
    """
    import pyarrow as pa

    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise FileNotFoundError(f"no finished index in {folder}")
    parts = read_json(manifest)["parts"]
    tables = [read_arrow(folder / f"part-{number:05d}.arrow") for number in range(parts)]
    return pa.concat_tables([table for table in tables if table.num_rows])
