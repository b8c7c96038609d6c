"""``vniah ask``: ask a model about a video or images at the terminal (paper section 6)."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from vniah.files import user_path
from vniah.notices import printable

# nano answers a needle's question in a word. Where it was taught no answer, it says one word until it is stopped.
_NANO_TOKENS, _TOKENS = 8, 512


def command(
    visuals_and_question: Annotated[
        list[str], typer.Argument(metavar="VIDEO|IMAGE... QUESTION", help="Files, then the question in quotes.")
    ],
    model: Annotated[
        str, typer.Option(help="nano, a checkpoint folder, a Hub id, or openai:NAME for one behind a server.")
    ] = "nano",
    base_url: Annotated[
        str | None, typer.Option(help="Of a served model: http://HOST:8000/v1; OPENAI_BASE_URL otherwise.")
    ] = None,
    frames: Annotated[int, typer.Option(help="Frames sampled from each video.", min=1)] = 32,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest answer in tokens; 512 unless given, 8 of nano.", min=1)
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0.0)] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of sampling.")] = 0,
    follow_up: Annotated[
        list[str] | None, typer.Option("--then", help="A follow-up question; may be given several times.")
    ] = None,
    chat: Annotated[bool, typer.Option(help="Go on asking from the terminal until an empty line.")] = False,
    model_args: Annotated[
        str, typer.Option(help="More model arguments, key=value,... as our lmms-eval models take them.")
    ] = "",
) -> None:
    """Ask a model about a video or images; the answer streams.

    Follow-up questions reuse what was computed for the video and the turns before.
    """
    *named, question = visuals_and_question
    # A question may be longer than any path: os.path says no where pathlib would raise.
    if os.path.isfile(user_path(question)):
        raise ValueError(f"a question is missing behind {question!r}; give it last, in quotes")
    paths = [os.fspath(user_path(path)) for path in named]
    for path in paths:
        if not os.path.isfile(path):
            raise FileNotFoundError(f"no file {path!r}; give videos or images first and the question last, in quotes")
        check_visual(Path(path))
    from longva_model.arguments import parse_model_args
    from vniah.served.arguments import PREFIX

    if model.startswith(PREFIX):
        more = parse_model_args(model_args) | ({} if base_url is None else {"base_url": base_url})
        asking = {"max_new_tokens": max_new_tokens or _TOKENS, "temperature": temperature}
        _ask_served(model.removeprefix(PREFIX), more, paths, frames, asking, [question, *(follow_up or [])], chat)
        return
    if base_url is not None:
        raise ValueError(f"--base-url is of a served model (--model {PREFIX}NAME)")
    # What can be refused is, before torch is loaded.
    from longva_model.arguments import ModelArgs, generate_leaf
    from longva_model.engine.conversation import Conversation
    from longva_model.run.runner import Runner

    args = {"pretrained": model, "max_frames_num": frames, "preprocess": "auto", **parse_model_args(model_args)}
    is_nano = args["pretrained"] == "nano"
    if is_nano:
        print(
            "vniah: nano is a tiny test model: it was taught icons and numbers in text; for "
            "real answers name a model, such as --model lmms-lab/LongVA-7B",
            file=sys.stderr,
        )
    runner = Runner.load(ModelArgs.read(args))
    talk = Conversation(runner.engine(ring=False), paths, max_frames=runner.args.max_frames_num)
    longest = max_new_tokens or (_NANO_TOKENS if is_nano else _TOKENS)
    options = {"max_new_tokens": longest, "temperature": temperature, "seed": seed}
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
                print(printable(text[len(shown) :], lines=True), end="", flush=True)
                shown = text

        result = talk.ask(asked, leaf, stream)
        # Rarely a later token changes how an earlier one reads: then the whole answer, on a line of its own.
        rest = result.text[len(shown) :] if result.text.startswith(shown) else "\n" + result.text
        print(printable(rest, lines=True), flush=True)


def _ask_served(
    model: str,
    model_args: Mapping[str, str],
    paths: Sequence[str],
    frames: int,
    asking: Mapping[str, float],
    given: list[str],
    chat: bool,
) -> None:
    """Ask a server; answers come whole."""
    from vniah.haystack.opening import open_video
    from vniah.haystack.pictures import is_picture, open_image
    from vniah.served.arguments import ServedArgs
    from vniah.served.asking import Asker

    asker = Asker(ServedArgs.read({"model": model, **model_args, "self_check": False}))
    asker.check()
    asker.greet()
    several = len(given) > 1 or chat
    visuals = [open_image(path) if is_picture(path) else open_video(path, frames) for path in paths]
    messages: list[dict[str, Any]] = []
    while given or chat:
        asked = given.pop(0) if given else _from_terminal()
        if not asked:
            break
        if several:
            print(f"> {asked}")
        messages += asker.content.message([] if messages else visuals, asked)
        reply = asker.talk(messages, asking)
        if reply.failure:
            raise ValueError(f"{model} gave no answer ({reply.failure}) {reply.text}".strip())
        messages.append({"role": "assistant", "content": reply.text})
        print(printable(reply.text.strip(), lines=True), flush=True)


def check_visual(path: Path) -> None:
    """Raise ValueError unless a file is a picture or a film; says what was found."""
    from vniah.haystack.container import open_container, video_stream
    from vniah.haystack.pictures import is_picture

    if is_picture(path):
        return
    try:
        with open_container(path) as container:
            video_stream(container, path)
    except ValueError as error:
        found = str(error).removeprefix(f"{path} is ")
        joint = ", but " if found.startswith("text") else " that can be read: "
        raise ValueError(f"{path} is neither a picture nor a film{joint}{found}") from None


def _from_terminal() -> str:
    """The next question; nothing at an empty line or the end of the input. Questions may come through a pipe too."""
    if sys.stdin.isatty():
        print("? ", end="", flush=True)
    return sys.stdin.readline().strip()
