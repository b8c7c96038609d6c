"""A model is right or refused: the engine against the model's own forward, on a short prompt, when it is loaded.

The engine runs a prompt in parts, leaves branches again and makes logits apart from the decoder. A model may be built
so that this is not what one forward of its own gives: it keeps a state that cannot be rewound, its attention takes
what blocks without a mask do not have, or it is one that nobody here has met. Whatever it is, it shows in its logits.

What a short prompt cannot show is refused by the model's config: recurrent states here, frequencies of RoPE that
change with the length in ``HubModel``; a sliding window is left to the model's own attention.

Shapes: T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from longva_model.backends.backend import Backend, building
from longva_model.engine.atoms import Lowered
from longva_model.engine.engine import EngineOptions, TreeEngine
from longva_model.engine.logits import is_finite, not_finite
from longva_model.engine.state import BY_ITS_OWN_CODE, CroppableLayer, new_state
from longva_model.frames.embeddings import FrameEmbeddings
from longva_model.run import processes
from vniah.notices import notice

# The largest relative difference that is never looked into.
_ALLOWED = {torch.float64: 1e-4, torch.float32: 1e-3, torch.float16: 3e-3, torch.bfloat16: 0.02}
# A model amplifies rounding: it may differ by so many times what one rounding of its embeddings changes, and at most
# by so much. Measured on models that are right, of 3 to 48 layers: 0.1 to 1.3 times.
_TIMES_ROUNDING, _MOST = 4, 0.3
_TEXT = (
    "On the 27th of May a red kite rose over the old harbour, where 14 boats lay side by side; by 6:30 the wind "
    'had turned, and nobody could say who had let it go. "Was it yours?" asked the girl. '
)
_TOKENS, _BRANCH = 64, 16
# Of keys and values in blocks, so that such a prompt has several.
_CHECKED_BLOCK = 12
# Windows up to here are made to matter by a longer prompt.
_SHORT_WINDOW = 256
# In place of a window that no layer is said to have, so that it would matter if it were used.
_PROBED_WINDOW = 20
# Settings of a config that limit the reach of the layers of a kind, in tokens.
_WINDOWS = {"sliding_window": "sliding_attention", "attention_chunk_size": "chunked_attention"}


def settle_attention(backend: Any, *, attn: str, plain: bool) -> None:
    """Choose the attention that gives the model's own logits, and leave the decoder with it.

    Args:
        backend: a ``HubModel``, whose decoder has the attention that transformers gave it.
        attn: a name of transformers' registry, or ``auto``: blocks without a mask where they are right, else the
            model's own, which is said.
        plain: prefer the model's own.

    Raises:
        ValueError: no attention gives the model's logits, or they are not finite.
    """
    refuse_recurrent(backend.name, backend.decoder.config, getattr(backend.decoder, "_is_stateful", False))
    from longva_model.attention import register

    register()
    own = backend.own_attention = backend.decoder.config._attn_implementation
    window = sliding_window(backend.decoder.config)
    windowed = window is not None and window < (backend.max_length or window + 1)
    ids = check_ids(backend, _TOKENS + (window if window is not None and window <= _SHORT_WINDOW else 0))
    with torch.inference_mode():
        wanted_TV = own_logits(backend, ids)
    choices = [own] if plain or windowed else ["longva_blockwise", own]
    names = choices if attn == "auto" else [attn]
    reasons = []
    for name in names:
        reason = _try(backend, name, ids, wanted_TV)
        if not reason:
            break
        reasons.append(f"with attention {name} {reason}")
    else:
        backend.decoder.set_attn_implementation(own)
        raise ValueError(
            f"{backend.name} ({backend.decoder.config.model_type}) is refused, its scores would be wrong: "
            f"{'; '.join(reasons)}. {BY_ITS_OWN_CODE}"
        )
    if name == "longva_blockwise" or attn != "auto" or plain:
        return
    why = f"it has a sliding window of {window} tokens" if windowed else reasons[0]
    notice(
        f"{backend.name} is run with attention {own}, its own, and not in blocks without a mask: {why}. Long prompts "
        "take more memory, and parallel=ring cannot run it"
    )


def settle_kv(backend: Any, kv: str, kv_block: int | None) -> None:
    """Have a backend keep keys and values as asked, once a short prompt has shown that its decoder reads them so.

    Args:
        backend: one whose attention is settled.
        kv, kv_block: see ``new_state``.

    Raises:
        ValueError: its layers or its attention cannot, or its logits would be wrong.
    """
    if kv == "device" and kv_block is None:
        return
    attention = backend.decoder.config._attn_implementation
    if attention != "longva_blockwise":
        raise ValueError(
            f"kv={kv} keeps keys and values in blocks, and {backend.name} is run with attention {attention}, which "
            "reads none; use kv=device"
        )
    new_state(backend.decoder.config, kv=kv, kv_block=kv_block)
    ids = check_ids(backend, _TOKENS)
    engine = TreeEngine(backend, FrameEmbeddings(backend), EngineOptions())
    backend.kv, backend.kv_block = kv, _CHECKED_BLOCK
    with torch.inference_mode():
        wanted_TV = own_logits(backend, ids)
        if kv == "fp8":
            difference = relative_difference(backend.logits(walked(engine, ids, chunk=20)), wanted_TV)
            told = f"its logits differ from those of its own forward by {difference:.1%} of their spread"
            reason = "" if difference <= _MOST else told
        else:
            reason = _difference(engine, ids, wanted_TV, chunk=20)
    if reason:
        raise ValueError(f"kv={kv} cannot be used for {backend.name} ({backend.decoder.config.model_type}): {reason}")
    backend.kv, backend.kv_block = kv, kv_block
    if kv == "fp8":
        backend.kv_difference = difference
        notice(f"kv=fp8 is an approximation: {backend.name} keeps keys and values in 8 bits; on a short prompt {told}")


def check_ring(engine: TreeEngine) -> None:
    """Compare a ring's engine with the model's own forward. Collective.

    Raises:
        ValueError: on every process, naming the difference.
    """
    backend = engine.backend
    reason = _no_ring(backend)
    if not reason:
        # Two chunks that are dealt out, one that is not.
        chunk = 32 * engine.world_size + 5
        ids = check_ids(backend, 2 * chunk + 7 + _BRANCH)
        with torch.inference_mode():
            reason = _difference(engine, ids, own_logits(backend, ids), chunk)
    if not any(processes.gather(reason)):
        # Features, and positions that are not places in the sequence.
        try:
            backend.check(type(engine))
        except ValueError as error:
            reason = _one_line(error)
    reasons = [told for told in processes.gather(reason) if told]
    if reasons:
        raise ValueError(
            f"parallel=ring cannot run {backend.name} ({backend.decoder.config.model_type}): {reasons[0]}; use "
            "parallel=branch, one device for each prompt"
        )


def _no_ring(backend: Any) -> str:
    """Why a ring cannot hold a model's state, which is rows of keys and values that all later tokens see; "" if not."""
    config = backend.decoder.config
    if not backend.plain_decoder:
        return "the visual tokens of an image see each other both ways"
    if not all(type(layer) is CroppableLayer for layer in new_state(config).layers):
        return "it has recurrent layers, or layers that read other layers' keys"
    window = sliding_window(config)
    windowed = window is not None and window < (backend.max_length or window + 1)
    return f"it has layers that see {window} tokens at most" if windowed else ""


def refuse_recurrent(name: str, config: Any, stateful: bool) -> None:
    """Refuse a model whose layers keep a state that cannot be taken back to a shared prefix.

    Args:
        config: its decoder's.
        stateful: whether transformers says that it keeps such a state (``_is_stateful``).

    Raises:
        ValueError: naming the model and its kind.
    """
    try:
        new_state(config)
        # A recurrent state that the layers' types tell can be copied; without types there is nothing to hold it.
        if not stateful or getattr(config, "layer_types", None):
            return
        reason = (
            f"{config.model_type} has a recurrent state, which cannot be taken back to a shared prefix. "
            f"{BY_ITS_OWN_CODE}"
        )
    except ValueError as error:
        reason = str(error)
    raise ValueError(f"{name} is refused: {reason}")


def _stated_windows(config: Any) -> dict[str, int]:
    """The windows that a config sets, in tokens, whether a layer is said to have them or not."""
    found = {attribute: getattr(config, attribute, None) for attribute in _WINDOWS}
    return {attribute: reach for attribute, reach in found.items() if type(reach) is int and reach > 0}


def sliding_window(config: Any) -> int | None:
    """The shortest reach of a decoder's layers in tokens; None where every layer is said to see everything."""
    kinds = getattr(config, "layer_types", None)
    stated = _stated_windows(config)
    return min((reach for name, reach in stated.items() if kinds is None or _WINDOWS[name] in kinds), default=None)


@contextlib.contextmanager
def _idle_windows_probed(config: Any, longest: int) -> Iterator[str]:
    """Shorten the windows below ``longest`` that no layer is said to have; yields which, "" if none.

    Such a model may ask for them all the same (Qwen2-MoE does), and be refused once a prompt is that long.
    """
    kinds = getattr(config, "layer_types", None) or _WINDOWS.values()
    idle = {
        name: reach
        for name, reach in _stated_windows(config).items()
        if _WINDOWS[name] not in kinds and _PROBED_WINDOW < reach < longest
    }
    for name in idle:
        setattr(config, name, _PROBED_WINDOW)
    try:
        yield " and ".join(f"{name} {reach}" for name, reach in idle.items())
    finally:
        for name, reach in idle.items():
            setattr(config, name, reach)


def check_ids(backend: Backend, length: int) -> list[int]:
    """``length`` ids of ordinary text, or as many as the model takes; none stands for an image or a video."""
    ids = backend.token_ids(_TEXT) or [0]
    limits = (backend.max_length, backend.chunked_until, backend.positions_until)
    length = max(min([length, *(limit for limit in limits if limit)]), _BRANCH + 4)
    # Beginning elsewhere each time, so that the prompt does not merely repeat.
    found: list[int] = []
    while len(found) < length:
        start = len(found) % 7
        found += ids[start:] + ids[:start]
    return found[:length]


def own_logits(backend: Any, ids: Sequence[int]) -> torch.Tensor:
    """Logits of one forward of the model's own, with its own attention, (T, V).

    Raises:
        ValueError: it does not run, or its logits are not finite.
    """
    given: dict[str, Any] = {"input_ids": torch.tensor([list(ids)], device=backend.device)}
    # What fails in a class of transformers' own is its config's doing.
    theirs = type(backend.model).__module__.startswith("transformers.")

    def run() -> torch.Tensor:
        with building(backend.name) if theirs else contextlib.nullcontext():
            logits_TV: torch.Tensor = backend.model(**given, use_cache=False).logits[0].float()
        return logits_TV

    before = backend.decoder.config._attn_implementation
    backend.decoder.set_attn_implementation(getattr(backend, "own_attention", "sdpa"))
    try:
        logits_TV = run()
        if not is_finite(logits_TV):
            raise not_finite(backend, [backend.embed_ids(ids)], run)
        return logits_TV
    finally:
        backend.decoder.set_attn_implementation(before)


def _try(backend: Any, name: str, ids: Sequence[int], wanted_TV: torch.Tensor) -> str:
    """Switch the decoder to an attention; "" where the engine is right with it, else what is wrong.

    Raises:
        ValueError: transformers does not know such an attention, or the model does not take it.
    """
    try:
        backend.decoder.set_attn_implementation(name)
    except (ValueError, ImportError) as error:
        raise ValueError(f"attn={name!r} cannot be used: {error}") from error
    engine = TreeEngine(backend, FrameEmbeddings(backend), EngineOptions())
    idle = ""
    with torch.inference_mode():
        if name.startswith("longva_"):
            with _idle_windows_probed(backend.decoder.config, backend.max_length or sys.maxsize) as idle:
                reason = engine.agree(_difference(engine, ids, wanted_TV, chunk=20))
            if not (idle and reason):
                return reason
        reason = engine.agree(_difference(engine, ids, wanted_TV, chunk=20))
    if idle and not reason:
        return f"it would meet its config's {idle}, though no layer is said to have such a window"
    return reason


def _difference(engine: TreeEngine, ids: Sequence[int], wanted_TV: torch.Tensor, chunk: int) -> str:
    """ "" where the engine gives ``wanted_TV`` in chunks, behind a branch that was left, and token by token."""
    backend = engine.backend
    try:
        found_TV = backend.logits(walked(engine, ids, chunk))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of a model that nobody here has met: anything
        return f"it does not run: {_one_line(error)}"
    if found_TV.shape != wanted_TV.shape:
        return f"its logits are of shape {tuple(found_TV.shape)} and not {tuple(wanted_TV.shape)}"
    split = len(ids) - _BRANCH
    allowed = _ALLOWED.get(backend.dtype, 1e-3)
    for part, what in ((slice(0, split), "in chunks"), (slice(split, None), "behind a branch that was left")):
        difference = relative_difference(found_TV[part], wanted_TV[part])
        if difference <= allowed:
            continue
        with _rounded_embeddings(backend):
            rounded_TV = own_logits(backend, ids)
        noise = relative_difference(rounded_TV, own_logits(backend, ids))
        allowed = max(allowed, min(_TIMES_ROUNDING * noise, _MOST))
        if not difference <= allowed:  # nan is wrong too
            return (
                f"its logits {what} differ from those of its own forward by {difference:.2%} of their spread "
                f"(rounding explains {allowed:.2%})"
            )
    return ""


def off_by_one_rounding(embeds: torch.Tensor) -> torch.Tensor:
    """Each value one rounding of its type up or down, the same ones every time."""
    signs = torch.randint(0, 2, embeds.shape, generator=torch.Generator().manual_seed(0)).to(embeds) * 2 - 1
    return embeds * (1 + signs * torch.finfo(embeds.dtype).eps)


@contextlib.contextmanager
def _rounded_embeddings(backend: Any) -> Iterator[None]:
    """The decoder's embeddings are off by one rounding, up or down.

    In their own module, since some models (Gemma 4) look up more by the ids and take no embeddings in their place.
    """

    def after(_module: Any, _args: Any, out: torch.Tensor) -> torch.Tensor:
        return off_by_one_rounding(out)

    handle = backend.decoder.get_input_embeddings().register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


def walked(engine: TreeEngine, ids: Sequence[int], chunk: int) -> torch.Tensor:
    """Hidden states of a prompt as the engine computes it, (T, D): in chunks, then by tokens behind a left branch."""
    prompt, branch = (Lowered(np.asarray(part, np.int64)) for part in (ids, [*ids[:-_BRANCH], *ids[_BRANCH - 1 :: -1]]))
    split = len(ids) - _BRANCH
    engine.state = engine.new_state(len(ids))
    parts = [engine.hidden(one, len(one)) for one in engine.chunks(prompt, 0, split, size=chunk)]
    mark = engine.state.mark()
    for one in engine.chunks(branch, split, size=_BRANCH):
        engine.hidden(one, 1)
    engine.state.rewind(mark)
    for start, stop in ((split, split + 1), (split + 1, split + 2), (split + 2, len(ids))):
        parts += [engine.hidden(one, len(one)) for one in engine.chunks(prompt, start, stop, size=stop - start)]
    engine.state = None
    return torch.cat(parts)


def relative_difference(found_TV: torch.Tensor, wanted_TV: torch.Tensor) -> float:
    """How far logits are apart, as a share of their spread; what is added to a whole row does not count."""
    found, wanted = (x.float() - x.float().mean(-1, keepdim=True) for x in (found_TV, wanted_TV))
    return float((found - wanted).norm() / wanted.norm().clamp(min=torch.finfo(torch.float32).tiny))


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if not isinstance(error, ValueError) else text[:200]
