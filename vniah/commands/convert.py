"""``vniah convert``: a checkpoint in the other layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A folder or Hub id, of either layout.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="A new folder.")],
    to: Annotated[
        str | None, typer.Option(help="ours or released; the other one than the source's unless given.")
    ] = None,
) -> None:
    """Convert a checkpoint between the released layout (llava_qwen) and ours, bit-exact.

    Tensors are copied byte for byte under their other names; converting back gives the same tensors and the same
    config keys. Nothing is overwritten.
    """
    # Before the source is looked for, which may be far away.
    if to not in (None, "ours", "released"):
        from vniah.notices import did_you_mean

        raise ValueError(f"no layout {to!r}; expected ours or released{did_you_mean(to, ('ours', 'released'))}")
    if target.exists():
        raise FileExistsError(f"{target} is there already and is not overwritten; give a new folder")
    from longva_model.checkpoints.convert import convert

    layout = convert(source, target, to)  # type: ignore[arg-type]
    print(f"wrote {target}, layout {layout}")
