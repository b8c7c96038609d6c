"""``vniah ask``: ask a model about a video or images at the terminal (paper section 6)."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer


def command(
    visuals_and_question: Annotated[
        list[str], typer.Argument(metavar="VIDEO|IMAGE... QUESTION", help="Files, then the question in quotes.")
    ],
    model: Annotated[str, typer.Option(help="nano, a checkpoint folder or a Hub id.")] = "nano",
    frames: Annotated[int, typer.Option(help="Frames sampled from each video.", min=1)] = 32,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.", min=1)] = 512,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0.0)] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of sampling.")] = 0,
    follow_up: Annotated[
        list[str] | None, typer.Option("--then", help="A follow-up question; may be given several times.")
    ] = None,
    chat: Annotated[bool, typer.Option(help="Go on asking from the terminal until an empty line.")] = False,
    model_args: Annotated[
        str, typer.Option(help="More model arguments, key=value,... as longva_ring takes them.")
    ] = "",
) -> None:
    """Ask a model about a video or images; the answer streams.

    Follow-up questions reuse what was computed for the video and the turns before.
    """
    from longva_model.engine.conversation import Conversation
    from longva_model.engine.runner import Runner
    from longva_model.generation_args import generate_leaf
    from longva_model.model_args import ModelArgs, parse_model_args

    *named, question = visuals_and_question
    # A question may be longer than any path: os.path says no where pathlib would raise.
    if os.path.isfile(os.path.expanduser(question)):
        raise ValueError(f"a question is missing behind {question!r}; give it last, in quotes")
    paths = [os.path.expanduser(path) for path in named]
    for path in paths:
        if not os.path.isfile(path):
            raise FileNotFoundError(f"no file {path!r}; give videos or images first and the question last, in quotes")
    args = {"pretrained": model, "max_frames_num": frames, "preprocess": "auto", **parse_model_args(model_args)}
    runner = Runner.load(ModelArgs.read(args))
    talk = Conversation(runner.engine(ring=False), paths, max_frames=runner.args.max_frames_num)
    options = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    leaf = generate_leaf(options, runner.backend.generation_defaults)
    given = [question, *(follow_up or [])]
    while given or chat:
        asked = given.pop(0) if given else _from_terminal()
        if not asked:
            break
        if follow_up or chat:
            print(f"> {asked}")
        shown = ""

        def stream(text: str) -> None:
            nonlocal shown
            # The last characters may still change while a multi-byte character is incomplete.
            if text.startswith(shown) and not text.endswith("\ufffd"):
                print(text[len(shown) :], end="", flush=True)
                shown = text

        result = talk.ask(asked, leaf, stream)
        # Rarely a later token changes how an earlier one reads: then the whole answer, on a line of its own.
        rest = result.text[len(shown) :] if result.text.startswith(shown) else "\n" + result.text
        print(rest, flush=True)


def _from_terminal() -> str:
    """The next question; nothing at an empty line or the end of the input. Questions may come through a pipe too."""
    if sys.stdin.isatty():
        print("? ", end="", flush=True)
    return sys.stdin.readline().strip()
