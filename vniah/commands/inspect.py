"""``vniah inspect``: how a file would be sampled, and whether it reads to its end."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from vniah.notices import printable


def command(
    file: Annotated[
        str,
        typer.Argument(
            help="A video file, a folder of images, a picture, or any haystack as VNIAH_HAYSTACK takes it.",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Decode the first and the last sample alone, not every one.")
    ] = False,
    decoder: Annotated[str, typer.Option(help="pyav, pyav-fast (approximate) or decord.")] = "pyav",
) -> None:
    """Say what would be sampled of a file and by which rule, and whether it reads to its end.

    Nothing is held in memory but a few frames. Ends with exit code 1 if it cannot be read. With --json: num_frames,
    rule, stream, codec, size (height, width), fps, seconds, readable_to_end, fingerprint, warnings, notes (HDR and
    alpha), error.
    """
    import dataclasses
    import json

    from tqdm import tqdm

    from vniah.haystack.opening import inspect_file

    with tqdm(unit="frame", leave=False, disable=True if quick else None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        found = inspect_file(file, decoder=decoder, quick=quick, progress=show)
    if as_json:
        print(json.dumps(dataclasses.asdict(found)))
    elif found.kind:
        frames = "without end" if found.num_frames is None else f"{found.num_frames:,}"
        rows = [
            ("kind", found.kind),
            ("frames", f"{frames} by rule {found.rule}"),
            ("stream", f"{found.stream} ({found.codec})" if found.codec else ""),
            ("size", f"{found.size[1]}x{found.size[0]}" if found.size else ""),
            ("length", f"{found.seconds:,.1f} s" if found.seconds else ""),
            ("read", "to its end" if found.readable_to_end else "not to its end"),
            ("fingerprint", found.fingerprint),
            *(("warning", warning) for warning in found.warnings),
            *(("note", note) for note in found.notes),
        ]
        for name, value in rows:
            if value:
                print(f"{name:<12}{printable(value)}")
    if found.error:
        print(f"vniah: error: {printable(found.error)}", file=sys.stderr)
        raise typer.Exit(1)
