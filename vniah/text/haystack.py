"""The text a needle is hidden in: essays from the Hub, a folder of .txt files, or built-in prose.

A haystack is sentences in a fixed order; one that is too short for a length is read again from its
beginning. Knows nothing about tokens. The same texts are the whole documents that perplexity is measured on.
"""

from __future__ import annotations

import hashlib
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vniah import hub
from vniah.files import is_hub_id, read_text, text_files, user_path
from vniah.text import prose
from vniah.text.sentences import split_sentences

ESSAYS = "baber/paul_graham_essays"
BUILTIN = "builtin"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextHaystack:
    """Sentences by order.

    Attributes:
        name: what it was opened from, for results and titles.
        fingerprint: SHA-256 of the text; of the generator's version and seed for built-in prose.
        num_chars: length of the text; ``None`` where it has no end.
        sentences: a new iterator over its sentences, from the first.
        note: why it is not the one that was wanted; empty otherwise.
    """

    name: str
    fingerprint: str
    num_chars: int | None
    sentences: Callable[[], Iterator[str]]
    note: str = ""


def open_text_haystack(spec: str = "") -> TextHaystack:
    """Open a haystack.

    Args:
        spec: a folder of .txt files, one text file, a Hub dataset id, or ``builtin[:seed]``. Empty is the paper's, Paul
            Graham's essays from the Hub, and built-in prose with a note where the Hub cannot be reached.

    Raises:
        FileNotFoundError: no such folder, or nothing to read in it, or no such dataset.
        ValueError: a file that is not UTF-8, or a ``spec`` that is none of the three.
        OSError: a Hub dataset that was named cannot be fetched.
    """
    if not spec:
        try:
            return _from_hub(ESSAYS)
        except OSError as error:
            note = f"{ESSAYS} could not be had ({error}); built-in prose stands in for it"
            print(f"text NIAH: {note}", file=sys.stderr)
            return _from_prose(0, note=note)
    name, _, seed = spec.partition(":")
    path = user_path(spec)
    # A folder without texts counts for nothing where the spec means the prose of that name.
    if path.is_file() or (path.is_dir() and (name != BUILTIN or text_files(path))):
        texts = [text for _, text in _from_files(path)]
        if not texts:
            raise FileNotFoundError(f"no .txt files in {path}; a text haystack is a folder with at least one")
        return from_texts(str(path), texts)
    if name == BUILTIN:
        if seed and not seed.isdecimal():
            raise ValueError(f"the seed of the built-in haystack is a whole number, as in 'builtin:7'; got {spec!r}")
        return _from_prose(int(seed or 0))
    if not path.exists() and is_hub_id(spec):
        return _from_hub(spec)
    raise FileNotFoundError(
        f"no text haystack {spec!r}; give a folder of .txt files, a Hub dataset such as {ESSAYS}, or {BUILTIN!r}"
    )


def from_texts(name: str, texts: Iterable[str]) -> TextHaystack:
    """A haystack of documents in the given order, a blank line between them.

    Raises:
        ValueError: nothing but white space.
    """
    documents = [text.replace("\r\n", "\n").replace("\r", "\n").strip() for text in texts]
    whole = "".join(f"{document}\n\n" for document in documents if document)
    if not whole:
        raise ValueError(f"the text haystack {name} is empty; expected at least one sentence")
    sentences = tuple(split_sentences(whole))
    return TextHaystack(
        name=name,
        fingerprint=hashlib.sha256(whole.encode("utf-8")).hexdigest(),
        num_chars=len(whole),
        sentences=lambda: iter(sentences),
    )


def _from_hub(repo: str) -> TextHaystack:
    return from_texts(repo, (text for text in _column(repo, "text") if text))


def _from_prose(seed: int, *, note: str = "") -> TextHaystack:
    """Built-in prose (see ``prose.py``): endless, hence never read twice."""
    beginning = "".join(itertools.islice(prose.sentences(seed), 256))
    key = f"prose {prose.VERSION} {seed}\n{beginning}"
    return TextHaystack(
        name=BUILTIN if seed == 0 else f"{BUILTIN}:{seed}",
        fingerprint=hashlib.sha256(key.encode("utf-8")).hexdigest(),
        num_chars=None,
        sentences=lambda: prose.sentences(seed),
        note=note,
    )


def read_documents(spec: str) -> list[tuple[str, str]]:
    """(name, text) of every non-empty document, in a fixed order.

    Args:
        spec: a folder of .txt files, a .txt file, or ``owner/dataset:column`` (column ``text`` when left out).

    Raises:
        FileNotFoundError: no such folder or file, or nothing to read in it.
        ValueError: a file that is not UTF-8, or a dataset without that column (names those it has).
    """
    path = user_path(spec)
    repo, _, column = spec.partition(":")
    if path.is_file() or path.is_dir():
        found = list(_from_files(path))
    elif is_hub_id(repo):
        found = [(f"{repo}[{number}]", text) for number, text in enumerate(_column(repo, column or "text"))]
    else:
        raise FileNotFoundError(f"{spec!r} is no folder or file here; expected one, or a Hub dataset owner/name:column")
    found = [(name, text) for name, text in found if text.strip()]
    if not found and path.exists():
        raise FileNotFoundError(f"{spec} holds no .txt file with text in it")
    return found


def _from_files(path: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of a file, or of every .txt file of a folder by name (the reference's order was the disk's)."""
    return ((file.name, read_text(file)) for file in ([path] if path.is_file() else text_files(path)))


def _column(repo: str, column: str) -> Iterator[str]:
    """A column of a Hub dataset's parquet files, in file and row order; "" for a row without a text.

    Raises:
        OSError: it cannot be fetched, or has no parquet file.
        ValueError: its files have no such column; names the columns there are.
    """
    import pyarrow.parquet

    paths = sorted(hub.fetch_dataset(repo, allow_patterns=("*.parquet",)).rglob("*.parquet"))
    if not paths:
        raise FileNotFoundError(f"the dataset {repo} has no parquet file; save its text in a folder of .txt files")
    for path in paths:
        names = pyarrow.parquet.read_schema(path).names
        if column not in names:
            raise ValueError(f"the dataset {repo} has no column {column!r} ({path.name} has {', '.join(names)})")
        for text in pyarrow.parquet.read_table(path, columns=[column])[column].to_pylist():
            yield str(text or "")
