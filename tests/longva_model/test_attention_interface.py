"""Block and ring attention inside decoders of transformers, in one process."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from tiny_checkpoints import TEXT
from torch import Tensor, nn

from longva_model.attention import RingContext, register, ring_context
from longva_model.renamed import cache_keyword

SMALL = {**TEXT, "vocab_size": 97, "max_position_embeddings": 256}


def decoder(kind: str, attention: str, **settings: Any) -> nn.Module:
    """The same small random weights for each ``attention``."""
    from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config

    register()
    config_class = {"qwen2": Qwen2Config, "llama": LlamaConfig, "mistral": MistralConfig}[kind]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        config_class(**{**SMALL, **settings}), attn_implementation=attention, dtype=torch.float32
    )
    assert model.config._attn_implementation == attention
    return model.eval()


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, 97, shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("attention", ["longva_blockwise", "longva_ring"])
@pytest.mark.parametrize("kind", ["qwen2", "llama", "mistral"])
def test_logits_and_gradients_equal_those_of_eager_attention(kind: str, attention: str) -> None:
    ids = tokens(2, 37)
    results = []
    for implementation in ("eager", attention):
        model = decoder(kind, implementation)
        out = model(ids, labels=ids)
        out.loss.backward()
        results.append([out.logits.detach(), *(p.grad for p in model.parameters())])
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("attention", ["longva_blockwise", "longva_ring"])
def test_prefill_in_chunks_and_generation_equal_eager_attention(attention: str) -> None:
    from transformers import DynamicCache

    ids = tokens(1, 41)
    eager, ours = decoder("qwen2", "eager"), decoder("qwen2", attention)
    cache, chunks = DynamicCache(config=ours.config), []
    with torch.no_grad():
        want = eager(ids).logits
        for chunk in ids.split([17, 1, 20, 3], 1):
            chunks.append(ours(chunk, use_cache=True, **{cache_keyword(ours): cache}).logits)
    torch.testing.assert_close(torch.cat(chunks, 1), want, atol=2e-5, rtol=1e-4)
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(ours.generate(ids, **settings), eager.generate(ids, **settings))


def test_padding_on_the_right_changes_no_real_token() -> None:
    ids = tokens(2, 20)
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    eager, ours = decoder("qwen2", "eager"), decoder("qwen2", "longva_blockwise")
    with torch.no_grad():
        want, got = eager(ids, attention_mask=mask).logits, ours(ids, attention_mask=mask).logits
    torch.testing.assert_close(got[mask.bool()], want[mask.bool()], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("attention", ["longva_blockwise", "longva_ring"])
def test_what_it_cannot_do_is_an_error(attention: str) -> None:
    ids = tokens(2, 20)
    model = decoder("qwen2", attention)
    left = torch.ones_like(ids)
    left[0, :5] = 0
    with pytest.raises(ValueError, match="padding on the right only"):
        model(ids, attention_mask=left)
    if attention == "longva_blockwise":  # under the ring, positions may jump
        with pytest.raises(ValueError, match="packed sequences"):
            model(ids, position_ids=torch.cat([torch.arange(12), torch.arange(8)])[None], use_cache=False)
    with pytest.raises(ValueError, match="no mask"):
        model(ids, attention_mask=torch.zeros(2, 1, 20, 20))
    from transformers import StaticCache

    cache = StaticCache(config=model.config, max_cache_len=64)
    with pytest.raises(ValueError, match="without unused slots"):
        model(ids, use_cache=True, **{cache_keyword(model): cache})
    with pytest.raises(ValueError, match="no dropout"):
        decoder("qwen2", attention, attention_dropout=0.1).train()(ids)


@pytest.mark.parametrize("attention", ["longva_blockwise", "longva_ring"])
def test_a_sliding_window_is_an_error_only_where_it_matters(attention: str) -> None:
    ids = tokens(1, 20)
    eager = decoder("mistral", "eager", sliding_window=20)
    ours = decoder("mistral", attention, sliding_window=20)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, eager(ids).logits, atol=2e-5, rtol=1e-4)
        for use_cache in (False, True):
            with pytest.raises(ValueError, match="sliding window"):
                ours(tokens(1, 21), use_cache=use_cache)


def test_a_vision_tower_attends_to_everything() -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    register()
    outputs = []
    for attention in ("eager", "longva_blockwise", "longva_ring"):
        torch.manual_seed(0)
        config = CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=28,
            patch_size=7,
        )
        config._attn_implementation = attention
        tower = CLIPVisionModel(config).eval()
        pixels = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            outputs.append(tower(pixels).last_hidden_state)
    for got in outputs[1:]:
        torch.testing.assert_close(got, outputs[0], atol=2e-5, rtol=1e-4)


def test_a_ring_of_one_with_padding_and_a_past() -> None:
    """All layouts also run without a process group."""
    ids = tokens(1, 30)
    eager, ours = decoder("qwen2", "eager"), decoder("qwen2", "longva_ring")
    from transformers import DynamicCache

    with torch.no_grad():
        want = eager(ids).logits
        padded = torch.cat([ids, ids[:, :2]], 1)
        got = ours(padded, ring_context=RingContext(valid_length=30), use_cache=False).logits
        torch.testing.assert_close(got[:, :30], want, atol=2e-5, rtol=1e-4)
        cache = DynamicCache(config=ours.config)
        with ring_context():
            ours(ids[:, :11], use_cache=True, **{cache_keyword(ours): cache})
        with ring_context(past_lengths=(11,)):
            chunk = ours(ids[:, 11:25], use_cache=True, **{cache_keyword(ours): cache}).logits
        with ring_context(layout="replicated"):
            question = ours(ids[:, 25:], use_cache=True, **{cache_keyword(ours): cache}).logits
    torch.testing.assert_close(torch.cat([chunk, question], 1), want[:, 11:], atol=2e-5, rtol=1e-4)


def test_a_context_ends_with_its_block_and_checks_itself() -> None:
    from longva_model.attention import interface

    with pytest.raises(RuntimeError, match="stop"), ring_context(valid_length=4) as outer:
        with ring_context(RingContext(layout="replicated")):
            assert interface._active is not outer
        assert interface._active is outer
        raise RuntimeError("stop")
    assert interface._active is None
    with pytest.raises(ValueError, match="got 'striped'"):
        RingContext(layout="striped")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="describe a zigzag layout"):
        RingContext(layout="replicated", past_lengths=(1,))
    model, ids = decoder("qwen2", "longva_ring"), tokens(1, 8)
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    with torch.no_grad(), ring_context():
        model(ids, use_cache=True, **{cache_keyword(model): cache})
        with pytest.raises(ValueError, match="8 past tokens on this rank"):
            model(ids, use_cache=True, **{cache_keyword(model): cache})


def test_importing_the_room_imports_no_torch() -> None:
    code = "import sys, longva_model.attention as a; dir(a); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
