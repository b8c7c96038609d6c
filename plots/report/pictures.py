"""The needle images of a run, found again by what the run says it was given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from vniah.needles import open_needles
from vniah.runs.results import Run

# Pictures of one run that a page holds; what a results file names may be without end.
MOST = 300


def needle_pictures(run: Run, spec: str | None = None) -> tuple[dict[str, Image.Image], str]:
    """Needle images by id, and a note where something is not as it was in the run ("" otherwise).

    Args:
        run: whose settings name its needle set and fingerprint.
        spec: a needle set (see ``open_needles``). Without one, the run's own is used if it is drawn or is
            a folder that is still there; a Hub dataset is only opened when it is named.

    Raises:
        ValueError: ``spec`` has none of the run's needles; and what ``open_needles`` raises for it.
    """
    task: Mapping[str, Any] = run.settings.get("task", {})
    if not run.placed or run.unit != "frames":
        return {}, ""
    own = str(task.get("needles_name") or task.get("needles") or "")
    if spec is None and not (own.split(":")[0] in ("builtin", "icons") or (own and Path(own).is_dir())):
        return {}, f"{run.name}: frames are not shown; name its needle set with --needles" if own else ""
    found = open_needles(spec or own)
    wanted = set(run.needles)
    shown = [needle for needle in found if needle.id in wanted]
    pictures = {needle.id: needle.image for needle in shown[:MOST]}
    if spec is not None and not pictures:
        raise ValueError(
            f"the needle set {spec!r} has none of the needles of {run.name!r} ({', '.join(sorted(wanted)[:5])})"
        )
    if not pictures:
        return {}, f"{run.name}: frames are not shown, since the needle set {own!r} has other needles"
    told = task.get("needles_fingerprint")
    if told is not None and told != found.fingerprint:
        if spec is None:
            return {}, f"{run.name}: frames are not shown, since the needle set {own!r} has changed since the run"
        return pictures, f"{run.name}: the needle set {spec!r} is not the one of the run; its frames may differ"
    if len(shown) > MOST:
        return pictures, f"{run.name}: the frames of {MOST} of its {len(shown):,} needles are shown"
    return pictures, ""
