"""``vniah download``: needles, a model, the data of a task, or any dataset, into the Hub cache."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from vniah.files import is_hub_id, read_json, user_path
from vniah.notices import printable

# What a run of ours on the released checkpoint reads of the vision tower that its config names: no weights.
_TOWER_FILES = ("config.json", "preprocessor_config.json")


def command(
    what: Annotated[
        str,
        typer.Argument(
            help="needles (the paper's set), a task of ours such as videomme_longva, or a Hub id: owner/name, "
            "models/owner/name or datasets/owner/name."
        ),
    ],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit; the default branch if left out.")] = None,
    cache_dir: Annotated[
        Path | None, typer.Option(help="Hub cache folder; HF_HUB_CACHE, or HF_HOME/hub, if left out.")
    ] = None,
) -> None:
    """Fetch needles, a model or the dataset of a task into the local cache.

    What is there already is not fetched again, and a broken download goes on where it stopped. Runs then read the
    cache and need no network. Of models only safetensors, configuration and tokenizer files are fetched.
    """
    from vniah.hub import hub_cache_dir
    from vniah.lmms_plugin import tasks_dir
    from vniah.runs.open import read_index
    from vniah.visual.settings import DEFAULT_NEEDLES

    cache = cache_dir or hub_cache_dir()
    index = read_index(tasks_dir())
    prefix, _, rest = what.partition("/")
    kind, repo_id = (prefix, rest) if prefix in ("models", "datasets") and is_hub_id(rest) else (None, what)
    if what == "needles":
        _needles(DEFAULT_NEEDLES, revision, cache)
    elif what in index:
        if revision is not None:
            raise ValueError(f"--revision names a revision of one repository; the task {what} may use several")
        _task(what, index, cache)
    elif is_hub_id(repo_id):
        _repository(repo_id, kind, revision, cache)
    else:
        raise ValueError(
            f"nothing named {what!r} to download; expected 'needles', a Hub id such as lmms-lab/LongVA-7B, "
            f"or one of our tasks: {', '.join(sorted(index))}"
        )
    if cache_dir is not None and cache.resolve() != hub_cache_dir().resolve():
        typer.echo(f"set HF_HUB_CACHE={cache} for runs that are to find this")


def _needles(repo_id: str, revision: str | None, cache: Path) -> None:
    from vniah.needles.sources import PATTERNS, read_snapshot

    folder = _newest_or_cached(repo_id, "dataset", revision, PATTERNS, cache)
    needles = read_snapshot(folder, repo_id, links_within=folder.parent.parent)
    typer.echo(f"{repo_id}: needles {printable(', '.join(needles.ids))} in {folder}")


def _repository(repo_id: str, kind: str | None, revision: str | None, cache: Path) -> None:
    """A model or a dataset; a bare id is looked up as a model first."""
    from vniah.hub import MODEL_FILES, NoRepositoryError, RepositoryMissingError, RevisionMissingError
    from vniah.visual.settings import DEFAULT_NEEDLES

    if repo_id == DEFAULT_NEEDLES and kind != "models":
        _needles(repo_id, revision, cache)
        return
    if kind != "datasets":
        try:
            folder = _newest_or_cached(repo_id, "model", revision, MODEL_FILES, cache)
            _said(repo_id, "model", folder)
            _tower(folder, cache)
            return
        except RepositoryMissingError as error:
            if kind == "models" or (revision is not None and isinstance(error, RevisionMissingError)):
                raise
    try:
        _said(repo_id, "dataset", _newest_or_cached(repo_id, "dataset", revision, None, cache))
    except NoRepositoryError:
        if kind is None:
            raise NoRepositoryError("model or dataset", repo_id) from None
        raise


def _tower(folder: Path, cache: Path) -> None:
    """The configuration of the vision tower that a released checkpoint names (its weights are in the checkpoint)."""
    from vniah.hub import fetch_snapshot

    config = folder / "config.json"
    tower = read_json(config).get("mm_vision_tower") if config.is_file() else None
    if not isinstance(tower, str) or not is_hub_id(tower):
        return
    try:
        _said(tower, "vision tower", fetch_snapshot(tower, allow_patterns=_TOWER_FILES, cache_dir=cache))
    except OSError as error:
        told = printable(f"{tower}, the vision tower's configuration, was not fetched: {error}")
        print(f"warning: {told}", file=sys.stderr)


def _task(name: str, index: dict[str, tuple[str, ...]], cache: Path) -> None:
    from vniah.runs.open import expand

    tasks = expand(name, index)
    foreign = [task for task in tasks if task not in index]
    data = {task: _data_of(task) for task in tasks if task in index}
    wanted = list(dict.fromkeys(part for part in data.values() if part))
    failed = 0
    for repo_id, patterns in wanted:
        # One benchmark behind a form must not keep the others from being fetched.
        try:
            if patterns is None:
                _needles(repo_id, None, cache)
            else:
                _said(repo_id, "dataset", _newest_or_cached(repo_id, "dataset", None, patterns, cache))
        except OSError as error:
            if len(wanted) == 1:
                raise
            failed += 1
            print(f"warning: {printable(error)}", file=sys.stderr)
    if nothing := [task for task, part in data.items() if not part]:
        typer.echo(f"nothing to fetch for {', '.join(nothing)}: what they measure on comes with the package")
    if foreign:
        typer.echo(f"lmms-eval fetches the data of its own tasks when they run: {', '.join(foreign)}")
    if failed:
        raise OSError(f"{failed} of {len(wanted)} data sets of {name} could not be fetched; see the warnings")


def _data_of(task: str) -> tuple[str, tuple[str, ...] | None] | None:
    """The Hub data set that a task of ours reads, and which files of it (None: it is a set of needles)."""
    from vniah.visual.settings import Settings

    def on_hub(spec: str) -> bool:
        return is_hub_id(spec) and not user_path(spec).is_dir()

    if task in ("vniah", "vniah_generate"):
        spec = Settings.read().needles
        return (spec, None) if on_hub(spec) else None
    if task.startswith("text_niah"):
        from vniah.text.haystack import ESSAYS
        from vniah.text.settings import TextSettings

        spec = TextSettings.read().haystack or ESSAYS
        return (spec, ("*.parquet",)) if on_hub(spec) else None
    if task.startswith("videomme_longva"):
        from vniah.tasks.videomme.data import SOURCE

        source = SOURCE
    elif task.startswith("mlvu_longva_"):
        from vniah.tasks.mlvu.data import SOURCES

        source = SOURCES["test" if "_test" in task else "dev", task.endswith("_generation")]
    else:
        return None
    return source.hub_id, (*source.annotations, *source.media)


def _newest_or_cached(
    repo_id: str,
    repo_type: Literal["model", "dataset"],
    revision: str | None,
    patterns: Sequence[str] | None,
    cache: Path,
) -> Path:
    """Fetch the newest revision; without an answer from the Hub, be content with what the cache has whole.

    Raises:
        HubUnreachableError: no answer, and not in the cache.
        RepositoryMissingError, ValueError, OSError: see ``vniah.hub.fetch_snapshot`` and ``fetch_model``.
    """
    from vniah.hub import HubUnreachableError, cached_snapshot, fetch_model, fetch_snapshot

    try:
        if repo_type == "model":
            return fetch_model(repo_id, revision, cache_dir=cache, refresh=True)
        return fetch_snapshot(repo_id, repo_type, revision, allow_patterns=patterns, cache_dir=cache, refresh=True)
    except HubUnreachableError as error:
        folder = cached_snapshot(repo_id, repo_type, revision, allow_patterns=patterns, cache_dir=cache)
        if folder is None:
            raise
        print(f"warning: {printable(error)}. The cache has {repo_id} already", file=sys.stderr)
        return folder


def _said(repo_id: str, what: str, folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    unit, name = (1e9, "GB") if size >= 1e9 else (1e6, "MB")
    typer.echo(f"{repo_id}: {what}, {len(files)} files, {size / unit:.1f} {name} in {folder}")
