"""A model that is shown frames is right or refused: the engine against the model's own forward of the same prompts.

A small tree is run as every tree is: units go through the towers alone, prompts share prefixes, chunks are cut, the
state is rewound to branches. Each answer's log-probabilities are then compared with those of one forward of the
model's own on what its own processor makes of the whole prompt. Whatever a family does that is not known here (a tower
that attends across frames, positions, masks, features of further levels) shows in them, by 0.03 at the least of what
was tried; the tree of a model that is right differs by rounding.

Shapes: N frames, T tokens of an answer, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from longva_model.backends.refusals import BY_ITS_OWN_CODE
from longva_model.engine.engine import EngineOptions, TreeEngine
from longva_model.engine.self_check import off_by_one_rounding
from longva_model.frames.embeddings import FrameEmbeddings
from longva_model.prompts.prompting import Prompt
from vniah.contract.requests import Clip, Frames, Request, Segment, Target, Text, Turn
from vniah.contract.sources import FramesNHWC, HeldFrames
from vniah.notices import notice

# The largest difference of a log-probability that is never looked into.
_ALLOWED = {torch.float64: 1e-4, torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.05}
# As in ``engine/self_check.py``: so many times what one rounding of the embeddings changes, and at most so much.
_TIMES_ROUNDING, _MOST = 4, 0.3
# A few tokens each; the second leaves most cuts inside the clip.
_CHUNKS = (8192, 37)
_QUESTIONS = ("What is the animal in the picture that does not belong to the film?", "Which one? Answer briefly.")
_ANSWER = "A red kite over the old harbour."
# Even and odd: some models merge frames in pairs.
_FRAMES = (4, 5)
_OTHER = 2  # which frame is another one in the second clip
_SIZE = (120, 160)


def check_visual(backend: Any, kind: type[TreeEngine] = TreeEngine) -> float:
    """Compare a small tree of clips with the model's own forward.

    Args:
        backend: lowers conversations, and has ``reference``.
        kind: what walks the tree; a ring's engine on all processes, which then all make this call.

    Returns:
        The largest difference of a log-probability.

    Raises:
        ValueError: naming the difference; or the model does not run; or its own forward tells two clips apart by
            less than the check could.
    """
    prompts = _prompts()
    ids = backend.token_ids(_ANSWER)
    with torch.inference_mode():
        own = [_own(backend, prompt, ids) for prompt in prompts]
    worst, allowed = 0.0, _ALLOWED.get(backend.dtype, 1e-3)
    for chunk in _CHUNKS:
        engine = kind(backend, FrameEmbeddings(backend), EngineOptions(chunk_tokens=chunk))
        try:
            found = [np.array(result.answer_logprobs) for result in engine.run(prompts)]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of a model that nobody here has met: anything
            cause = " ".join(str(error).split())[:300]
            raise _refused(backend, f"it does not run: {type(error).__name__}: {cause}") from error
        worst = max(worst, _apart(found, own))
        if not worst <= allowed:  # nan is wrong too
            allowed = max(allowed, min(_TIMES_ROUNDING * _rounding(backend, prompts[0], ids, own[0]), _MOST))
        if not worst <= allowed:
            raise _refused(
                backend,
                f"in chunks of {chunk} tokens its log-probabilities differ from those of its own forward by "
                f"{worst:.2g} (rounding explains {allowed:.2g})",
            )
    _check_sight(backend, own, allowed)
    return worst


def _prompts() -> list[Prompt]:
    """Clips of each length in pairs that differ in one frame; about the last, both questions are asked."""
    noise_NHWC = _noise(max(_FRAMES))
    other_NHWC = 255 - noise_NHWC[_OTHER : _OTHER + 1]
    media = {"first": HeldFrames(noise_NHWC, "check:first"), "other": HeldFrames(other_NHWC, "check:other")}
    clips: list[tuple[Segment, ...]] = []
    for count in _FRAMES:
        clips.append((Frames("first", 0, count),))
        clips.append((Frames("first", 0, _OTHER), Frames("other", 0, 1), Frames("first", _OTHER + 1, count)))
    asked = [*((clip, _QUESTIONS[0]) for clip in clips), (clips[-1], _QUESTIONS[1])]
    requests = [Request((Turn("user"), Clip(), *clip, Text(text)), Target(_ANSWER)) for clip, text in asked]
    return [Prompt(request=request, media=media, beyond_context=True) for request in requests]


def _noise(count: int) -> FramesNHWC:
    """Coloured squares, which outlast resizing; (N, H, W, 3)."""
    rows, columns = (side // 8 for side in _SIZE)
    squares_NHWC = np.random.default_rng(0).integers(0, 256, (count, rows, columns, 3), dtype=np.uint8)
    return squares_NHWC.repeat(8, axis=1).repeat(8, axis=2)


def _own(backend: Any, prompt: Prompt, ids: Sequence[int]) -> np.ndarray:
    """Log-probabilities of an answer's ids by the model's own forward, (T,)."""
    try:
        logits_TV = backend.reference(prompt, ids[:-1])
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        cause = " ".join(str(error).split())[:300]
        raise _refused(backend, f"its own forward does not run: {type(error).__name__}: {cause}") from error
    logprobs_TV = logits_TV.float().log_softmax(-1)
    found_T: np.ndarray = logprobs_TV[range(len(ids)), list(ids)].cpu().numpy()
    return found_T


def _apart(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    return float(np.abs(np.concatenate(found) - np.concatenate(wanted)).max())


def _rounding(backend: Any, prompt: Prompt, ids: Sequence[int], own_T: np.ndarray) -> float:
    """What one rounding of its embeddings changes in the model's own log-probabilities."""
    with _rounded(backend), torch.inference_mode():
        return _apart([_own(backend, prompt, ids)], [own_T])


@contextlib.contextmanager
def _rounded(backend: Any) -> Iterator[None]:
    """The decoder's embeddings are off by one rounding, up or down."""

    def before(_module: Any, args: Any, given: dict[str, Any]) -> Any:
        embeds = given.get("inputs_embeds")
        if embeds is not None:
            given = {**given, "inputs_embeds": off_by_one_rounding(embeds)}
        return args, given

    handle = backend.decoder.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _check_sight(backend: Any, own: Sequence[np.ndarray], allowed: float) -> None:
    """The clips of a pair must differ for the model, or whatever is done to their features passes."""
    seen = min(_apart([own[2 * pair]], [own[2 * pair + 1]]) for pair in range(len(_FRAMES)))
    if seen > 2 * allowed:
        return
    told = f"{backend.name} ({backend.model.config.model_type}) tells two clips apart by {seen:.2g} only"
    if seen == 0:
        notice(f"{told}: it does not see what it is shown, and its check against its own forward proves little")
    elif backend.dtype in (torch.float16, torch.bfloat16):
        notice(f"{told}, which is no more than rounding: its check against its own forward proves little")
    else:
        raise _refused(backend, f"its check proves nothing: the model tells two clips apart by {seen:.2g} only")


def _refused(backend: Any, reason: str) -> ValueError:
    kind = backend.model.config.model_type
    return ValueError(f"{backend.name} ({kind}) is refused, its scores would be wrong: {reason}. {BY_ITS_OWN_CODE}")
