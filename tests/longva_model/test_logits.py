"""Logits of answers are fp32, by the model's own head; angles of RoPE are exact."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_checkpoints import TEXT, write_llava_next_video, write_longva, write_text_model
from torch import nn

from longva_model.arguments import ModelArgs
from longva_model.backends.backend import ExactRotary, make_exact
from longva_model.backends.loading import load_backend
from longva_model.engine import logits
from longva_model.engine.logits import OwnHead, WideLinear, widened

SIZES: dict[str, Any] = {**TEXT, "vocab_size": 130, "max_position_embeddings": 2048}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_logits_of_half_precision_weights_are_not_rounded(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounded to bf16, about one top logit in twenty ties with another, and log-probabilities are off by 0.07."""
    monkeypatch.setattr(logits, "_WIDE_NUMBERS", 64 * 300)  # several slices, the last one shorter
    torch.manual_seed(0)
    linear = nn.Linear(64, 2000, bias=True).to(dtype)
    hidden_TD = (torch.randn(400, 64) * 12).to(dtype)
    with torch.inference_mode():
        found_TV = WideLinear(linear)(hidden_TD)
        weight, bias = linear.weight.double(), linear.bias.double()
        exact_TV = hidden_TD.double() @ weight.T + bias
        rounded_TV = linear(hidden_TD).float()
    assert found_TV.dtype == torch.float32
    torch.testing.assert_close(found_TV.double(), exact_TV, atol=1e-4, rtol=1e-5)
    assert torch.equal(found_TV.argmax(-1), exact_TV.argmax(-1))
    ties = [(x == x.max(-1, keepdim=True).values).sum(-1).gt(1).sum() for x in (found_TV, rounded_TV)]
    assert ties[0] == 0 and (ties[1] > 0 or dtype == torch.float16)


def test_fp32_and_other_heads_are_called_as_they_are() -> None:
    linear = nn.Linear(8, 20, bias=False)
    hidden_TD = torch.randn(3, 8)
    assert torch.equal(widened(linear)(hidden_TD), linear(hidden_TD))
    strange = nn.Sequential(nn.Linear(8, 20))
    assert widened(strange) is strange


@pytest.mark.parametrize(
    "config",
    [
        transformers.CohereConfig(**SIZES, logit_scale=0.25),
        transformers.GraniteConfig(**SIZES, logits_scaling=4.0),
        transformers.Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=0.05),
        transformers.OPTConfig(
            vocab_size=130,
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            word_embed_proj_dim=16,
        ),
    ],
    ids=lambda config: config.model_type,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_models_own_way_from_hidden_states_to_logits(config: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config)).to(dtype).eval()
    ids = torch.arange(5, 25)[None]
    parts = {name: id(part) for name, part in model.named_modules()}
    with torch.inference_mode():
        own = OwnHead(model, model.get_decoder())
        hidden_TD = model.get_decoder()(ids).last_hidden_state[0]
        found_TV, wanted_TV = own(hidden_TD), model(ids).logits[0].float()
    assert found_TV.dtype == torch.float32
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found_TV, wanted_TV, atol=tolerance, rtol=tolerance)
    # The model itself is as it was.
    assert {name: id(part) for name, part in model.named_modules()} == parts


def test_a_model_without_a_decoder_apart_is_refused() -> None:
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SIZES))
    with pytest.raises(ValueError, match="has no decoder apart from its head"):
        OwnHead(model, model)


ROTARY = {
    "halves": transformers.Qwen2Config(**SIZES),
    "pairs": transformers.CohereConfig(**SIZES),
    "scaled": transformers.LlamaConfig(
        **SIZES,
        rope_parameters={
            "rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 512,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROTARY)
def test_angles_are_exact_far_out(name: str) -> None:
    """In fp32 the product of position and frequency is off by up to half its last place: 0.016 at 432,000."""
    decoder = transformers.AutoModel.from_config(copy.deepcopy(ROTARY[name]))
    plain = decoder.rotary_emb
    assert make_exact(decoder) and isinstance(decoder.rotary_emb, ExactRotary)
    assert make_exact(decoder) and decoder.rotary_emb.plain is plain, "not twice"
    x, near, far = torch.zeros(1, 1, 1), torch.arange(64)[None], torch.arange(431_900, 432_100)[None]
    for found, wanted in zip(decoder.rotary_emb(x, near), plain(x, near), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    angles_TF = far[0, :, None].double() * plain.inv_freq.double()
    layout = torch.repeat_interleave(angles_TF, 2, -1) if name == "pairs" else torch.cat((angles_TF, angles_TF), -1)
    cos, sin = decoder.rotary_emb(x, far)
    torch.testing.assert_close(cos[0].double(), layout.cos() * plain.attention_scaling, atol=1e-6, rtol=0)
    torch.testing.assert_close(sin[0].double(), layout.sin() * plain.attention_scaling, atol=1e-6, rtol=0)
    assert (plain(x, far)[0][0].double() - layout.cos() * plain.attention_scaling).abs().max() > 1e-4
    assert decoder.rotary_emb(x.bfloat16(), far)[0].dtype == torch.bfloat16


def test_frequencies_that_change_with_the_prompt_are_left_alone() -> None:
    config = transformers.LlamaConfig(
        **SIZES, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    )
    decoder = transformers.AutoModel.from_config(config)
    assert not make_exact(decoder) and not isinstance(decoder.rotary_emb, ExactRotary)
    assert not make_exact(nn.Linear(2, 2))


@pytest.mark.parametrize("kind", ["longva", "text", "llava_next_video"])
def test_angles_and_logits_of_a_loaded_model_are_exact(kind: str, tmp_path: Path) -> None:
    """Those of hf_tree's families are in tests/any_model/test_any_model_backend.py; the head is the same method."""
    write = {"longva": write_longva, "text": write_text_model, "llava_next_video": write_llava_next_video}[kind]
    backend = load_backend(ModelArgs.read({"pretrained": str(write(tmp_path)), "device": "cpu", "dtype": "bfloat16"}))
    assert isinstance(backend.decoder.rotary_emb, ExactRotary) and isinstance(widened(backend.lm_head), WideLinear)
    hidden_TD = (torch.randn(5, backend.lm_head.weight.shape[1]) * 12).bfloat16()
    with torch.inference_mode():
        exact_TV = hidden_TD.double() @ backend.lm_head.weight.double().T
        torch.testing.assert_close(backend.logits(hidden_TD).double(), exact_TV, atol=1e-4, rtol=1e-5)
        assert (backend.lm_head(hidden_TD).double() - exact_TV).abs().max() > 1e-3
