"""A model is right or refused: causal models of many kinds against their own forward, and faults that must show."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_backends as tiny
import torch
import transformers
from tiny_checkpoints import TEXT as SIZES
from tiny_checkpoints import letters, write_llava_next_video, write_longva, write_text_model

from longva_model.arguments import ModelArgs
from longva_model.backends.loading import load_backend
from longva_model.engine import self_check
from longva_model.engine.chunks import Chunk
from longva_model.engine.engine import EngineOptions, PlainEngine, TreeEngine
from longva_model.engine.perplexity import measure
from longva_model.engine.state import CroppableCache, CroppableLayer
from longva_model.frames.embeddings import FrameEmbeddings
from vniah.contract.requests import Request, Target, Text
from vniah.notices import forget, recorded

LENGTH = 150
TEXT = "The old harbour lies north of the red river; 31 boats went out, 7 came back, and nobody asked. " * 4
COMMON: dict[str, Any] = {**SIZES, "vocab_size": 120, "max_position_embeddings": 512}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12}
WINDOWED = {"sliding_window": 20, "layer_types": ["sliding_attention", "full_attention"]}
# By name: what transformers calls it, and what it is made of.
RIGHT: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2Config", COMMON),
    "scales logits": ("CohereConfig", {**COMMON, "logit_scale": 0.25}),
    "divides logits": ("GraniteConfig", {**COMMON, "logits_scaling": 4.0, "embedding_multiplier": 3.0}),
    "caps logits": ("Gemma2Config", {**COMMON, "head_dim": 8, "final_logit_softcapping": 2.0, "sliding_window": 20}),
    "window": ("MistralConfig", {**COMMON, "sliding_window": 20}),
    "windows of some layers": ("Cohere2Config", {**COMMON, **WINDOWED}),
    "sinks": ("GptOssConfig", {**COMMON, **WINDOWED, "head_dim": 8, "num_local_experts": 4}),
    "learned positions": ("GPT2Config", {"vocab_size": 120, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    "projected head": (
        "OPTConfig",
        {
            "vocab_size": 120,
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "word_embed_proj_dim": 16,
        },
    ),
    "slopes": ("MptConfig", {"vocab_size": 120, "d_model": 32, "n_layers": 2, "n_heads": 4}),
    "values of another size": (
        "DeepseekV3Config",
        {
            **COMMON,
            **LATENT,
            "num_key_value_heads": 4,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "n_routed_experts": 4,
            "moe_intermediate_size": 16,
            "num_experts_per_tok": 2,
        },
    ),
    "a decoder that is called the head's": (
        "ModernBertDecoderConfig",
        {**COMMON, "local_attention": 20, "global_attn_every_n_layers": 2, "pad_token_id": 1, "eos_token_id": 2},
    ),
    "a decoder that is not told": (
        "Llama4TextConfig",
        {**COMMON, "head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 4, "attention_chunk_size": 20},
    ),
    "experts": ("Qwen3MoeConfig", {**COMMON, **EXPERTS, "head_dim": 8}),
    "convolutions": ("Lfm2Config", {**COMMON, "layer_types": ["conv", "full_attention"]}),
}
# Releases of transformers tell it differently.
NO_ATTENTION = "no layer of it has attention|a recurrent state"
STATE = {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 2}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "mamba": ("MambaConfig", {**STATE, "state_size": 4}, NO_ATTENTION),
    "mamba2": ("Mamba2Config", {**STATE, "state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 1}, NO_ATTENTION),
    "sees what follows": ("BertConfig", {**STATE, "intermediate_size": 48, "num_attention_heads": 4}, "own forward by"),
    "an encoder and a decoder": (
        "T5Config",
        {"vocab_size": 120, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
        "no causal language model",
    ),
}


def made(folder: Path, config: Any) -> Path:
    """A random model of ``config``, weights larger than usual so that all it reads shows in its logits."""
    mapping = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    kind = mapping.get(type(config), transformers.T5ForConditionalGeneration)
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    model.save_pretrained(folder)
    letters().save_pretrained(folder)
    return folder


def load(folder: Path, **args: Any) -> Any:
    return load_backend(ModelArgs.read({"pretrained": str(folder), "device": "cpu", "dtype": "float32", **args}))


def perplexity(backend: Any, chunk_tokens: int = 33) -> float:
    engine = TreeEngine(backend, FrameEmbeddings(backend), EngineOptions(chunk_tokens=chunk_tokens))
    return measure(engine, [backend.token_ids(TEXT)[:LENGTH]], LENGTH).nll


def own_perplexity(folder: Path, backend: Any) -> float:
    """By the model as any user of transformers has it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False).eval()
    ids = torch.tensor([backend.token_ids(TEXT)[:LENGTH]])
    with torch.inference_mode():
        logits = model(ids).logits[0, :-1]
    return float(torch.nn.functional.cross_entropy(logits, ids[0, 1:]))


@pytest.mark.parametrize("name", RIGHT)
def test_causal_models_of_many_kinds_are_as_their_own_forward(name: str, tmp_path: Path) -> None:
    kind, values = RIGHT[name]
    folder = made(tmp_path / "model", getattr(transformers, kind)(**values))
    backend = load(folder)
    assert perplexity(backend) == pytest.approx(own_perplexity(folder, backend), abs=2e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_cannot_be_right_are_refused_by_name(name: str, tmp_path: Path) -> None:
    kind, values, why = REFUSED[name]
    folder = made(tmp_path / "model", getattr(transformers, kind)(**values))
    with pytest.raises(ValueError, match=why) as caught:
        load(folder)
    config = getattr(transformers, kind)
    told = str(caught.value)
    assert "\n" not in told and str(folder) in told and (config.model_type in told.lower())


def test_the_models_own_attention_is_taken_where_blocks_are_not_right_and_said(tmp_path: Path) -> None:
    forget()
    folder = made(tmp_path / "model", transformers.MistralConfig(**COMMON, sliding_window=20))
    assert load(folder).decoder.config._attn_implementation == "sdpa"
    (said,) = recorded()
    assert "attention sdpa, its own" in said and "a sliding window of 20 tokens" in said
    # A window as long as the context cuts nothing off.
    forget()
    wide = made(tmp_path / "wide", transformers.MistralConfig(**COMMON, sliding_window=512))
    assert load(wide).decoder.config._attn_implementation == "longva_blockwise" and not recorded()
    # Some kinds ask for a window though the config calls every layer full; 300 is longer than what the check runs.
    forget()
    values = {**COMMON, **EXPERTS, "sliding_window": 300, "use_sliding_window": True}
    full = transformers.Qwen2MoeConfig(**values, layer_types=["full_attention"] * 2)
    assert load(made(tmp_path / "full", full)).decoder.config._attn_implementation == "sdpa"
    assert "sliding_window 300, though no layer is said to have" in recorded()[0]
    # Others do not, and keep their blocks; the config is left as it was.
    forget()
    idle = transformers.Qwen2Config(**values, layer_types=["full_attention"] * 2)
    decoder = load(made(tmp_path / "idle", idle)).decoder
    assert (decoder.config._attn_implementation, decoder.config.sliding_window) == ("longva_blockwise", 300)
    assert not recorded()
    # Asked for by name, blocks are refused and not replaced.
    with pytest.raises(ValueError, match=r"with attention longva_blockwise it does not run: .*sliding window"):
        load(folder, attn="longva_blockwise")


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_frequencies_that_change_with_the_length_end_where_they_change(rope_type: str, tmp_path: Path) -> None:
    """No short prompt shows it: up to 100 tokens in parts are as in one forward, beyond they are not."""
    rope: dict[str, Any] = {"rope_type": rope_type, "rope_theta": 1e4, "factor": 4.0}
    if rope_type == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "original_max_position_embeddings": 100}
    config = transformers.LlamaConfig(**{**COMMON, "max_position_embeddings": 100}, rope_parameters=rope)
    backend = load(made(tmp_path / "model", config))
    engine = TreeEngine(backend, FrameEmbeddings(backend), EngineOptions(chunk_tokens=33))
    ids = backend.token_ids(TEXT)
    assert math.isfinite(measure(engine, [ids[:100]], 100).nll)
    with pytest.raises(ValueError, match=r"cannot be run on 101 tokens in parts: beyond 100"):
        measure(engine, [ids[:101]], 101)
    # In one forward it is the model's own.
    plain = load(tmp_path / "model", scoring="plain")
    request = Request((Text(TEXT[:120]),), Target("ok"))
    # As a measurement of how far the context reaches.
    asked = [replace(prompt, beyond_context=True) for prompt in tiny.prompts([request])]
    (result,) = PlainEngine(plain, FrameEmbeddings(plain)).run(asked)
    own = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", trust_remote_code=False).eval()
    ids = torch.tensor([plain.token_ids(TEXT[:120] + "ok")])
    with torch.inference_mode():
        wanted = own(ids[:, :-1]).logits[0, -2:].log_softmax(-1).gather(1, ids[0, -2:, None])[:, 0]
    assert result.answer_logprobs == pytest.approx(wanted.tolist(), abs=1e-4)
    with pytest.raises(ValueError, match=r"in parts: beyond 100"):
        engine.run(asked)
    with pytest.raises(ValueError, match=r"does not fit the context of 100 tokens"):
        engine.run(tiny.prompts([request]))


def test_positions_that_end_are_named(tmp_path: Path) -> None:
    config = transformers.GPT2Config(vocab_size=120, n_embd=32, n_layer=2, n_head=4, n_positions=90)
    backend = load(made(tmp_path / "model", config))
    request = Request((Text(TEXT[:120]),), Target("ok"))
    asked = [replace(prompt, beyond_context=True) for prompt in tiny.prompts([request])]
    for engine in (TreeEngine(backend, FrameEmbeddings(backend)), PlainEngine(backend, FrameEmbeddings(backend))):
        with pytest.raises(ValueError, match=r"learned positions for 90 tokens and cannot be run on 12\d"):
            engine.run(asked)
    with pytest.raises(ValueError, match="learned positions for 90 tokens and cannot be run on 120"):
        measure(engine, [backend.token_ids(TEXT)[:120]], 120)


WRITERS: dict[str, Callable[[Path], Path]] = {
    "LongVA": write_longva,
    "LLaVA-NeXT-Video": write_llava_next_video,
    "text": write_text_model,
}


@pytest.mark.parametrize("fault", ["the head", "no rewind", "stale rows", "a position", "nan"])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_fault_of_the_engine_shows_when_a_model_is_loaded(
    kind: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = WRITERS[kind](tmp_path / "model")
    load(folder)
    hidden = TreeEngine.hidden
    said = "differ from those of its own"
    if fault == "no rewind":
        monkeypatch.setattr(CroppableCache, "rewind", lambda self, mark: None)
        said = "a chunk at 48 behind 64 tokens"
    elif fault == "stale rows":
        crop_to = CroppableLayer.crop_to

        def stale(self: CroppableLayer, length: int) -> None:
            left = self.length - length
            self.keys[:, :, length - left : length] = self.keys[:, :, length : self.length].clone()
            crop_to(self, length)

        monkeypatch.setattr(CroppableLayer, "crop_to", stale)
    else:

        def faulty(self: TreeEngine, chunk: Chunk, keep: int) -> torch.Tensor:
            if fault == "a position" and self.state.length:
                return hidden(self, replace(chunk, positions=chunk.positions.flip(-1)), keep)
            return hidden(self, chunk, keep) * {"the head": -1.0, "nan": torch.nan}.get(fault, 1.0)

        monkeypatch.setattr(TreeEngine, "hidden", faulty)
    with pytest.raises(ValueError, match=rf"is refused, its scores would be wrong: .* {said}"):
        load(folder)


def test_rounding_of_bfloat16_is_no_fault_and_faults_are_no_rounding(tmp_path: Path) -> None:
    sizes = {**COMMON, "num_hidden_layers": 12}
    folder = made(tmp_path / "model", transformers.Qwen2Config(**sizes))
    assert load(folder, dtype="bfloat16").dtype == torch.bfloat16
    bert = made(tmp_path / "bert", transformers.BertConfig(**REFUSED["sees what follows"][1]))
    with pytest.raises(ValueError, match="differ from those of its own forward"):
        load(bert, dtype="bfloat16")


def test_the_check_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One forward of the model's own and one walk, whatever the model."""
    tokens: list[int] = []
    own = self_check.own_logits
    monkeypatch.setattr(
        self_check, "own_logits", lambda backend, ids, *rest: (tokens.append(len(ids)), own(backend, ids, *rest))[1]
    )
    load(write_text_model(tmp_path / "model"))
    assert tokens == [64]
