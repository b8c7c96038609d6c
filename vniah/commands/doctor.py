"""``vniah doctor``: what is installed, what is missing and how to get it."""

from __future__ import annotations

from typing import Annotated

import typer

_MARKS = {"ok": ("ok", typer.colors.GREEN), "note": ("--", typer.colors.YELLOW), "missing": ("!!", typer.colors.RED)}


def command(
    online: Annotated[bool, typer.Option("--online", help="Also ask the Hub whether it answers.")] = False,
    host_model: Annotated[
        str | None, typer.Option("--host-model", help="How this model of lmms-eval is run on vniah_generate.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --host-model: as JSON.")] = False,
) -> None:
    """Say what is installed, what is missing and how to get it.

    Ends with exit code 0 if `lmms-eval --model longva_ring --tasks vniah` can run here, or without lmms-eval
    `vniah run vniah`; else 1. With --host-model, says by which arguments that model of lmms-eval is shown every frame
    of VNIAH_FRAMES: works (null: nobody has run it here), model_args, env, packages, note.
    """
    if host_model is not None:
        _host(host_model, as_json)
        return
    if as_json:
        raise ValueError("--json is for --host-model NAME; the rest of doctor is for reading")
    from vniah.commands import diagnosis

    checks = (
        diagnosis.packages,
        diagnosis.locked,
        diagnosis.devices,
        diagnosis.attention,
        diagnosis.decoders,
        diagnosis.harness,
        diagnosis.caches,
        lambda: diagnosis.hub(online=online),
    )
    findings = []
    topic = ""
    for check in checks:
        for finding in check():
            if finding.topic != topic:
                topic = finding.topic
                typer.secho(topic, bold=True)
            mark, colour = _MARKS[finding.state]
            typer.echo(f"  {typer.style(mark, fg=colour)}  {finding.text}")
            findings.append(finding)

    missing = [finding for finding in findings if finding.state == "missing"]
    for title, chosen in (
        ("To run at all", missing),
        ("Worth having", [finding for finding in findings if finding.state == "note"]),
    ):
        # Two findings may have one cure.
        cures = dict.fromkeys(finding.fix for finding in chosen if finding.fix)
        if cures:
            typer.secho(f"\n{title}", bold=True)
            for cure in cures:
                typer.echo(f"  {cure}")
    if missing:
        typer.echo(f"\nThe main job cannot run: {len(missing)} thing{'s' if len(missing) > 1 else ''} missing (!!).")
        raise typer.Exit(1)
    if diagnosis.has_harness():
        typer.echo("\nThe main job can run: lmms-eval --model longva_ring --tasks vniah")
    else:
        typer.echo("\nThe core can run: vniah run vniah --model nano -o out; lmms-eval is not installed")


def _host(name: str, as_json: bool) -> None:
    import json

    from vniah.runs.open import metadata_of
    from vniah.visual.compose import composed_frames
    from vniah.visual.hosts import advise, command_line
    from vniah.visual.settings import Settings

    frames = composed_frames(Settings.read(metadata_of("vniah_generate")).grid.longest)
    advice = advise(name, frames)
    if as_json:
        typer.echo(json.dumps(advice.as_dict()))
        return
    works = {True: "shows every frame", False: "cannot", None: "not run here"}[advice.works]
    typer.secho(f"{name} on vniah_generate, videos of up to {frames} frames: {works}", bold=True)
    typer.echo(f"  {advice.note}")
    if advice.packages:
        typer.echo(f"  packages: {' '.join(advice.packages)}")
    if advice.works is not False:
        typer.echo(f"  {command_line(name, advice)}")
