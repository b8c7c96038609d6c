"""``vniah perplexity``: the figure that earlier papers use for context length."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    text: Annotated[str, typer.Option(help="Folder of .txt files, a .txt file, or a Hub dataset owner/name:column.")],
    model: Annotated[str, typer.Option(help="nano, a checkpoint folder or a Hub id.")] = "nano",
    lengths: Annotated[
        str, typer.Option(help="Context lengths in tokens, such as 4K,8K or 32K-224K:32K.")
    ] = "1K,2K,4K",
    stride: Annotated[int, typer.Option(help="Sliding window's stride; 0 measures full context only.", min=0)] = 256,
    join: Annotated[bool, typer.Option(help="Join all documents into one long text.")] = False,
    max_windows: Annotated[int, typer.Option(help="At most so many windows a length; 0 is all.", min=0)] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Plot (.png or .pdf).")] = None,
    csv: Annotated[Path | None, typer.Option(help="Figures as CSV.")] = None,
    model_args: Annotated[
        str, typer.Option(help="More model arguments, key=value,... as our lmms-eval models take them.")
    ] = "",
) -> None:
    """Measure text perplexity at growing context lengths: full context and sliding window.

    Under torchrun the sequence is shared over the processes (--model-args parallel=branch: each measures all of it).
    """
    from vniah.commands.run_options import check_text_output
    from vniah.plots.style import check_image_path, save_figure, save_text
    from vniah.runs.grid import parse_lengths
    from vniah.text.haystack import read_documents

    wanted = parse_lengths(lengths)
    # A long measurement must not end at a folder that is not there.
    if output is not None:
        check_image_path(output)
    check_text_output(csv, (".csv",), [text])
    documents = read_documents(text)
    # What can be refused is, before torch is loaded.
    from longva_model.arguments import ModelArgs, parse_model_args
    from longva_model.engine.perplexity import check_length, measure
    from longva_model.run.runner import Runner
    from vniah.runs.progress import Bar

    runner = Runner.load(ModelArgs.read({"pretrained": model, **parse_model_args(model_args)}))
    engine = runner.engine(ring=runner.world_size > 1 and runner.args.parallel != "branch")
    if join:
        documents = [("joined", "\n\n".join(body for _, body in documents))]
    ids = [runner.backend.token_ids(body) for _, body in documents]
    for length in wanted:
        check_length(ids, length)
    found = []
    quiet = runner.rank != 0
    for length in wanted:
        for step in (None, stride or None) if stride else (None,):
            if step is not None and step >= length:
                if not quiet:
                    print(f"{length} tokens: no sliding window, whose stride of {step} is not below the length")
                continue
            limit = max_windows or None
            with Bar(desc=f"{length} tokens", unit="window", disable=quiet) as bar:
                found.append(measure(engine, ids, length, stride=step, max_windows=limit, on_window=bar.update))
    if quiet:
        return
    print(f"{'length':>9}  {'kind':<28} {'perplexity':>12} {'tokens':>10} {'windows':>8}")
    for one in found:
        print(f"{one.length:>9,}  {one.kind:<28} {one.value:>12.4f} {one.num_tokens:>10,} {one.num_windows:>8,}")
    if output is None and csv is None:
        return
    from vniah.plots.curves import Curve, curves_csv, curves_figure

    kinds = list(dict.fromkeys(one.kind for one in found))
    curves = [
        Curve(name=kind, points=tuple((float(one.length), one.value) for one in found if one.kind == kind))
        for kind in kinds
    ]
    panels = {Path(model).name: curves}
    if output is not None:
        train = runner.backend.train_tokens
        inside = train if train and min(wanted) <= train <= max(wanted) else None
        labels = {"x_label": "Context length (tokens)", "y_label": "Perplexity"}
        print(f"wrote {save_figure(curves_figure(panels, **labels, mark_x=inside), output)}")
    if csv is not None:
        print(f"wrote {save_text(curves_csv(panels, 'context_length', 'perplexity'), csv)}")
