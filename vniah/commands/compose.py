"""``vniah compose``: the mp4 of one cell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    haystack: Annotated[
        str,
        typer.Argument(
            help="A video file, a folder of images, or synthetic[:seed[:num_frames[:WIDTHxHEIGHT]]]. "
            "'?loop=N' after it repeats it up to N frames."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .mp4 to write.")],
    needle: Annotated[str | None, typer.Option(help="Id of the needle; none with --control.")] = None,
    needles: Annotated[
        str, typer.Option(help="The needle set: a Hub dataset, a folder, builtin, or icons[:seed[:count]].")
    ] = "builtin",
    frames: Annotated[
        int | None,
        typer.Option(help="num_frames of the cell; as many as the haystack has room for if left out."),
    ] = None,
    depth: Annotated[int, typer.Option(help="Where the needle goes, from 0 (first) to 100 (last) per cent.")] = 50,
    control: Annotated[bool, typer.Option("--control", help="The haystack alone, without a needle.")] = False,
    decoder: Annotated[str, typer.Option(help="pyav, pyav-fast (approximate) or decord.")] = "pyav",
    cache: Annotated[str, typer.Option(help="Cache folder; VNIAH_CACHE or ~/.cache/vniah if left out.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
) -> None:
    """Write the mp4 of one cell: a haystack with a needle in it, one frame a second.

    It is the one that vniah_generate shows: the haystack's frames and the needle at its place, one more of the haystack
    where that makes the number even; a control has as many frames. The haystack is encoded once and kept in the cache,
    so that further cells of it are put together without encoding.
    """
    from tqdm import tqdm

    from vniah.haystack import open_haystack
    from vniah.runs.grid import Cell, Grid
    from vniah.visual.compose import SplicedVideo, composed_frames, held_at_the_end
    from vniah.visual.composed_videos import Composer
    from vniah.visual.scenes import Needles
    from vniah.visual.settings import cache_dir

    if output.exists() and not force:
        raise FileExistsError(f"{output} exists already; choose another name or pass --force")
    source = open_haystack(haystack, decoder=decoder)
    if frames is None and source.endless:
        raise ValueError(f"{source.name} has no end; say how many frames of it to take, such as --frames 200")
    if frames is None:
        # An even number is shown, and all of them haystack frames in a control.
        frames = max(1, len(source) - 1 - len(source) % 2)
    # Checks both ranges with the errors that a grid gives.
    Grid(lengths=(frames,), depths=(depth,))
    film = held_at_the_end(source, frames)
    if control:
        if needle is not None:
            raise ValueError(f"--control shows no needle, but --needle {needle} was given; drop one of the two")
        video = SplicedVideo(haystack=film, num_frames=composed_frames(frames))
    else:
        from vniah.needles import open_needles

        needle_set = open_needles(needles)
        if needle is None:
            known = ", ".join(one.id for one in needle_set)
            raise ValueError(f"give --needle ID, or --control for none; {needles} has {known}")
        scene, shown = Needles(needle_set).composed(Cell(frames, depth, needle_set.get(needle).id))
        video = SplicedVideo(haystack=film, num_frames=shown, inserted=scene.inserted)
    with tqdm(total=video.num_frames, unit="frame", desc="haystack", disable=None) as bar:
        composer = Composer(film, cache_dir(cache) / "composed", progress=bar.update)
        composer.write(video, output, overwrite=force)
    place = f"needle {needle} at frame {video.inserted[0].place}" if video.inserted else "no needle"
    typer.echo(f"{output}: {len(video)} frames at 1 fps, {place}; haystack {source.name} ({source.fingerprint})")
