"""The state behind a walk: whatever was tried and left, what follows is what one plain forward gives."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from longva_model.engine.state import CroppableCache, HybridLayer, Mark, RecurrentLayer, new_state
from longva_model.renamed import cache_keyword

TOKENS, WINDOW, VOCABULARY = 80, 8, 90
ALLOWED = 1e-5
# Its keys and queries are normalised and not scaled, so attention is sharp: one plain forward in fp32 is 2.7e-5 from
# one in fp64. In fp64 the walk and the plain forward are equal.
ALLOWED_OF = {"Gemma 4": 4e-5}
HEADS = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
COMMON = {**HEADS, "head_dim": 16}
SIX = {**COMMON, "num_hidden_layers": 6}
ALTERNATING = ["sliding_attention", "full_attention"] * 3
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}

ROWS: dict[str, Callable[[], Any]] = {
    "Qwen2": lambda: transformers.Qwen2Config(**HEADS),
    "Qwen2 with windows": lambda: transformers.Qwen2Config(
        **HEADS, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2
    ),
    "Mistral": lambda: transformers.MistralConfig(**COMMON, sliding_window=WINDOW),
    "Gemma 3": lambda: transformers.Gemma3TextConfig(**SIX, sliding_window=WINDOW, layer_types=ALTERNATING),
    # The last two layers read the rows of the two before them.
    "Gemma 3n": lambda: transformers.Gemma3nTextConfig(
        **SIX,
        sliding_window=WINDOW,
        layer_types=ALTERNATING,
        num_kv_shared_layers=2,
        hidden_size_per_layer_input=16,
        vocab_size_per_layer_input=VOCABULARY,
        activation_sparsity_pattern=[0.0] * 6,
        laurel_rank=8,
    ),
    "Gemma 4": lambda: transformers.Gemma4TextConfig(
        **SIX,
        sliding_window=WINDOW,
        layer_types=ALTERNATING,
        num_kv_shared_layers=2,
        global_head_dim=32,
        hidden_size_per_layer_input=16,
        vocab_size_per_layer_input=VOCABULARY,
    ),
    "Llama 4": lambda: transformers.Llama4TextConfig(
        **COMMON,
        attention_chunk_size=WINDOW,
        intermediate_size_mlp=96,
        num_local_experts=2,
        layer_types=["chunked_attention"] * 3 + ["full_attention"],
    ),
}
RECURRENT: dict[str, Callable[[], Any]] = {
    "Qwen3.5": lambda: transformers.Qwen3_5TextConfig(**COMMON, **LINEAR),
    "Qwen3-Next": lambda: transformers.Qwen3NextConfig(
        **COMMON,
        **LINEAR,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
    ),
    "LFM2": lambda: transformers.Lfm2Config(**HEADS, layer_types=["conv", "conv", "full_attention", "conv"]),
    "Falcon-H1": lambda: transformers.FalconH1Config(
        **COMMON, mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=16, mamba_chunk_size=16
    ),
}


class Decoder:
    """A tiny random decoder, the ids of a prompt, and their hidden states by one plain forward, (T, D)."""

    def __init__(self, config: Any) -> None:
        generator = torch.Generator().manual_seed(0)
        self.model = transformers.AutoModel.from_config(config).eval()
        for weight in self.model.parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.03, generator=generator)
        self.ids_T = torch.randint(3, VOCABULARY, (TOKENS,), generator=generator)
        self.wanted_TD = self.model(input_ids=self.ids_T[None], use_cache=False).last_hidden_state[0]

    def extend(self, state: CroppableCache, ids_T: torch.Tensor) -> torch.Tensor:
        """Hidden states of new tokens behind a state, (T, D)."""
        positions_T = torch.arange(state.length, state.length + len(ids_T))
        given = {cache_keyword(self.model): state}
        out = self.model(input_ids=ids_T[None], position_ids=positions_T[None], use_cache=True, **given)
        hidden_TD: torch.Tensor = out.last_hidden_state[0]
        return hidden_TD

    def difference(self, state: CroppableCache, seed: int) -> float:
        """The largest one of hidden states between one plain forward and a random walk that ends with the prompt.

        Chunks are uneven; wrong branches with marks of their own are tried and left, twice from each mark; now and
        then the walk goes back along its trunk.
        """
        drawn = random.Random(seed)
        found_TD = torch.full_like(self.wanted_TD, torch.nan)
        trunk: list[tuple[int, Mark]] = []
        at = 0
        while at < TOKENS:
            mark = state.mark()
            trunk.append((at, mark))
            for _ in range(drawn.choice((0, 0, 2))):
                self.extend(state, self._wrong(drawn, drawn.choice((1, 3, 20))))
                inner = state.mark()
                for length in (5, 1):
                    self.extend(state, self._wrong(drawn, length))
                    state.rewind(inner)
                    assert state.length == inner.length
                state.rewind(mark)
            if drawn.random() < 0.25:
                del trunk[drawn.randrange(len(trunk)) + 1 :]
                at, mark = trunk[-1]
                state.rewind(mark)
            end = min(at + drawn.choice((1, 2, 7, 13, 37)), TOKENS)
            found_TD[at:end] = self.extend(state, self.ids_T[at:end])
            at = end
            assert state.length == at
        return float((found_TD - self.wanted_TD).abs().max())

    @staticmethod
    def _wrong(drawn: random.Random, length: int) -> torch.Tensor:
        return torch.tensor([drawn.randrange(3, VOCABULARY) for _ in range(length)])


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("kind", [*ROWS, *RECURRENT])
def test_a_walk_with_branches_left_gives_what_a_plain_forward_gives(kind: str) -> None:
    decoder = Decoder((ROWS | RECURRENT)[kind]())
    assert decoder.wanted_TD.std() > 0.1
    state = new_state(decoder.model.config, TOKENS)
    start = state.mark()
    for seed in range(2):
        state.rewind(start)
        assert state.length == 0
        assert decoder.difference(state, seed) <= ALLOWED_OF.get(kind, ALLOWED)


@pytest.mark.parametrize("kind", RECURRENT)
def test_lengths_alone_do_not_rewind_a_recurrent_state(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(RECURRENT[kind]())
    monkeypatch.setattr(RecurrentLayer, "rewind", lambda self, length, snapshot: None)
    monkeypatch.setattr(HybridLayer, "rewind", lambda self, length, snapshot: self.crop_to(length))
    assert decoder.difference(new_state(decoder.model.config), 0) > 1e-3


def test_a_mark_survives_what_is_written_after_each_rewind_to_it() -> None:
    decoder = Decoder(RECURRENT["Qwen3.5"]())
    state = new_state(decoder.model.config)
    decoder.extend(state, decoder.ids_T[:30])
    mark = state.mark()
    for _ in range(3):
        state.rewind(mark)
        # One token at a time, since these are written into the convolution's state in place.
        found_TD = torch.cat([decoder.extend(state, id_1) for id_1 in decoder.ids_T[30:36].split(1)])
        assert (found_TD - decoder.wanted_TD[30:36]).abs().max() <= ALLOWED


def test_marks_at_one_place_are_one_and_are_counted_while_held() -> None:
    decoder = Decoder(RECURRENT["Qwen3.5"]())
    state = new_state(decoder.model.config, TOKENS)
    empty = state.mark()
    assert empty is state.mark() and empty.num_bytes == state.num_bytes == 0
    decoder.extend(state, decoder.ids_T[:20])
    bare = state.num_bytes
    mark = state.mark()
    assert state.mark() is mark and 0 < mark.num_bytes < bare and state.num_bytes == bare + mark.num_bytes
    decoder.extend(state, decoder.ids_T[20:21])
    assert state.num_bytes == bare + mark.num_bytes
    later = state.mark()
    assert later is not mark and later.num_bytes == mark.num_bytes
    state.rewind(mark)
    assert state.mark() is mark
    recurrent = mark.num_bytes
    del mark, later
    state.rewind(empty)
    # Buffers of rows stay, and the states that no token has gone into do not.
    assert state.num_bytes == bare - recurrent == 2 * 2 * TOKENS * 16 * 4


def test_a_mark_that_was_left_is_refused() -> None:
    decoder = Decoder(ROWS["Qwen2"]())
    state = new_state(decoder.model.config)
    early = state.mark()
    decoder.extend(state, decoder.ids_T[:20])
    late = state.mark()
    state.rewind(early)
    decoder.extend(state, decoder.ids_T[50:75])
    with pytest.raises(AssertionError, match="or one that was left: 20 tokens"):
        state.rewind(late)
    with pytest.raises(AssertionError, match="no mark of this cache"):
        new_state(decoder.model.config).rewind(early)


def test_rows_are_cropped_by_a_number_and_recurrent_states_are_not() -> None:
    gemma = Decoder(ROWS["Gemma 4"]())
    state = new_state(gemma.model.config)
    gemma.extend(state, gemma.ids_T[:50])
    late = state.mark()
    state.crop_to(30)
    assert (gemma.extend(state, gemma.ids_T[30:]) - gemma.wanted_TD[30:]).abs().max() <= ALLOWED_OF["Gemma 4"]
    with pytest.raises(AssertionError, match="or one that was left"):
        state.rewind(late)
    with pytest.raises(AssertionError, match="rewind to a mark instead"):
        new_state(RECURRENT["LFM2"]()).crop_to(0)


def test_what_cannot_be_rewound_is_named() -> None:
    sparse = transformers.Qwen2Config(**HEADS)
    sparse.layer_types = ["full_attention", "compressed_sparse_attention", "indexed_attention", "full_attention"]
    with pytest.raises(ValueError, match=r"qwen2 .* it has layers of compressed_sparse_attention, indexed_attention"):
        new_state(sparse)
    with pytest.raises(ValueError, match=r"qwen3_5_text .* no layer of it has attention"):
        new_state(transformers.Qwen3_5TextConfig(**COMMON, **LINEAR, layer_types=["linear_attention"] * 4))
