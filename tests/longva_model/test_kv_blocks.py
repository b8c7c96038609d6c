"""Keys and values in blocks: in the host's memory the bits of the device, in 8 bits as near as 8 bits are."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_backends as tiny
import torch
import transformers

import vniah
from longva_model.arguments import ModelArgs
from longva_model.attention import reference_attention
from longva_model.attention.past import attention_behind_past
from longva_model.backends.loading import load_backend
from longva_model.engine import kv_blocks, self_check
from longva_model.engine.conversation import Conversation
from longva_model.engine.engine import EngineOptions, TreeEngine
from longva_model.engine.kv_blocks import BlockRows, Carrier, KVStore, from_fp8, host_bytes, to_fp8
from longva_model.engine.perplexity import window_nll
from longva_model.engine.state import CroppableCache, new_state
from longva_model.frames.embeddings import FrameEmbeddings
from longva_model.renamed import cache_keyword
from longva_model.run import processes
from longva_model.run.runner import Runner
from vniah.contract.requests import Frames, Generate, Image, Leaf, Request, Target, Text

HAY = tiny.NoiseFrames(40)
MEDIA = {HAY.fingerprint: HAY, "needle": tiny.needle_image(0)}
DEVICE = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def backend_with(kv: str, block: int | None) -> tiny.TinyBackend:
    backend = tiny.TinyBackend("qwen2")
    backend.kv, backend.kv_block = kv, block
    return backend


def engine_of(backend: Any, chunk_tokens: int = 32) -> TreeEngine:
    return TreeEngine(backend, FrameEmbeddings(backend), EngineOptions(chunk_tokens=chunk_tokens))


def cells() -> list[Request]:
    """A tree: needles at three places of one film, answers forced and free."""
    leaves: tuple[Leaf, ...] = (Target("no"), Target("abcde"), Generate(max_new_tokens=6))
    return [
        Request(
            (
                Text("system"),
                *([Frames(HAY.fingerprint, 0, at)] if at else []),
                Image("needle"),
                Frames(HAY.fingerprint, at, 40),
                Text(f"what is at {at}?"),
            ),
            leaf,
        )
        for at in (0, 11, 30)
        for leaf in leaves
    ]


def answers(kv: str, block: int | None, chunk_tokens: int = 32) -> list[Any]:
    return engine_of(backend_with(kv, block), chunk_tokens).run(tiny.prompts(cells(), MEDIA))


@pytest.mark.parametrize("block", [5, 32, 1000])
def test_the_hosts_memory_gives_the_bits_of_the_device(block: int) -> None:
    assert answers("host", block) == answers("device", block)


def test_blocks_give_what_whole_rows_give_up_to_rounding() -> None:
    whole = answers("device", None)
    for kv, block in (("host", 5), ("device", 64), ("host", None)):
        for one, other in zip(answers(kv, block), whole, strict=True):
            assert one.predicted_ids == other.predicted_ids
            torch.testing.assert_close(
                torch.tensor(one.answer_logprobs), torch.tensor(other.answer_logprobs), atol=2e-4, rtol=2e-4
            )


@pytest.mark.parametrize("kv", ["host", "fp8"])
def test_a_run_that_goes_on_gives_the_bits_of_one_that_was_not_stopped(kv: str) -> None:
    prompts = tiny.prompts(cells(), MEDIA)
    whole = answers(kv, 16)
    for known in ({0: whole[0]}, {index: whole[index] for index in (0, 1, 2, 4, 8)}):
        assert engine_of(backend_with(kv, 16)).run(prompts, known=known) == whole


def test_a_conversation_and_perplexity_go_through_blocks_too() -> None:
    found = []
    for kv in ("device", "host"):
        talk = Conversation(engine_of(backend_with(kv, 16)), [HAY.frames(0, 20)], max_frames=20)
        told = [talk.ask(question, Generate(max_new_tokens=5)) for question in ("what?", "and then?")]
        # A branch that was left: the state has gone back to where the second question began.
        told.append(talk.ask("why?", Generate(max_new_tokens=5)))
        ids = [1 + number * 37 % 90 for number in range(150)]
        found.append((told, window_nll(engine_of(backend_with(kv, 16)), ids, 1)))
    assert found[0] == found[1]


class Walk:
    """A decoder's hidden states along a random walk with branches that are left, by its seed."""

    def __init__(self, attention: str = "longva_blockwise", **config: Any) -> None:
        self.config = transformers.Qwen2Config(**{**tiny.SIZES, **config})
        torch.manual_seed(0)
        self.model = transformers.AutoModel.from_config(self.config, attn_implementation=attention).eval()

    def states(self, state: CroppableCache, seed: int, branches: bool = True) -> list[torch.Tensor]:
        drawn, wrong, found = random.Random(seed), random.Random(-1 - seed), []
        for _ in range(8):
            length = drawn.choice((1, 2, 9, 21))
            ids_T = torch.tensor([drawn.randrange(3, tiny.VOCAB) for _ in range(length)])
            if branches:
                mark = state.mark()
                self.extend(state, torch.tensor([wrong.randrange(3, tiny.VOCAB) for _ in range(30)]))
                state.mark()
                state.rewind(mark)
            found.append(self.extend(state, ids_T))
        return found

    def extend(self, state: CroppableCache, ids_T: torch.Tensor) -> torch.Tensor:
        positions_T = torch.arange(state.length, state.length + len(ids_T), device=ids_T.device)
        given = {cache_keyword(self.model): state}
        out = self.model(ids_T[None], position_ids=positions_T[None], use_cache=True, **given)
        return out.last_hidden_state[0]


@pytest.mark.parametrize("planned", [None, 10, 200])
@pytest.mark.parametrize("kv", ["host", "fp8"])
def test_branches_that_were_left_leave_no_trace(kv: str, planned: int | None) -> None:
    walk = Walk()
    tried, straight = (
        walk.states(new_state(walk.config, planned, kv=kv, kv_block=16), 3, branches) for branches in (True, False)
    )
    assert all(torch.equal(one, other) for one, other in zip(tried, straight, strict=True))


def test_in_8_bits_chunks_change_no_more_than_rounding() -> None:
    walk = Walk()
    ids_T = torch.arange(3, 83)
    whole = walk.extend(new_state(walk.config, kv="fp8"), ids_T)
    state = new_state(walk.config, kv="fp8", kv_block=16)
    parts = torch.cat([walk.extend(state, part) for part in ids_T.split((30, 1, 49))])
    exact = walk.extend(new_state(walk.config), ids_T)
    assert (parts - whole).abs().max() < 0.1 * (exact - whole).abs().max()


def test_rows_in_8_bits_are_off_by_half_a_step_at_most() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 2, 16, generator=generator) * 10 ** torch.linspace(-20, 20, 400)[:, None, None]
    x[0] = 0
    x[1, :, 3] *= 1e4  # a channel that stands out
    rows, scale = to_fp8(x)
    assert rows.dtype == torch.float8_e4m3fn and scale.shape == (400, 2, 1)
    off = (from_fp8(rows, scale, torch.float32) - x).abs()
    # Three bits of mantissa, and below the smallest normal number steps of 2^-9.
    assert bool((off <= x.abs() * 2**-4 + scale * 2**-10 * 1.01).all())
    assert off[2:].max() > 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_rows_in_8_bits_stay_not_finite(bad: float) -> None:
    x = torch.randn(3, 1, 8, generator=torch.Generator().manual_seed(0))
    x[1, 0, 2] = bad
    back = from_fp8(*to_fp8(x), torch.float32)
    assert not back[1].isfinite().all() and back[[0, 2]].isfinite().all()


@pytest.mark.parametrize("kv", ["device", "host", "fp8"])
@pytest.mark.parametrize("new", [1, 5])
def test_attention_behind_blocks_against_the_definition(kv: str, new: int) -> None:
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(1, 4, new, 16, generator=generator)
    k, v = (torch.randn(1, 2, 50 + new, 16, generator=generator) for _ in range(2))
    rows = BlockRows(KVStore(kv, 16), None)
    rows.write(0, k[:, :, :23], v[:, :, :23])
    rows.write(23, k[:, :, 23:50], v[:, :, 23:50])
    kept = rows.write(50, k[:, :, 50:], v[:, :, 50:])
    out = attention_behind_past(q, *kept, rows.past(50), causal=True)
    wanted, _ = reference_attention(q, k, v, causal=True)
    off = float((out - wanted).abs().max())
    # A number is off by a sixteenth of itself at most. Values are 3 at most, and so outputs 0.2 by these alone.
    assert (1e-3 < off < 0.1) if kv == "fp8" else off < 1e-6


def test_blocks_arrive_whole_while_the_next_is_on_its_way() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = ((6, 6), (6, 6), (6, 6), (6, 6), (4, 2))
    blocks = [([torch.randn(size, 3, generator=generator)], rows) for size, rows in sizes]
    carrier = Carrier(DEVICE)
    places = set()
    for _ in range(2):
        for here, (block, rows) in zip(carrier.to_device(blocks), blocks, strict=True):
            assert torch.equal(here[0], block[0][:rows])
            places.add(here[0].data_ptr())
    # Two places serve all, the shorter last block too.
    assert len(places) == 2 and not places & {block[0].data_ptr() for block, _ in blocks}
    # A longer one than there was makes room.
    longer = [([torch.randn(9, 3, generator=generator)], 9)]
    assert torch.equal(next(carrier.to_device(longer))[0], longer[0][0][0])
    assert not list(carrier.to_device([]))


def test_what_each_form_takes() -> None:
    backend = tiny.TinyBackend()
    for kv in ("device", "host", "fp8"):
        state = backend.new_state(100, kv=kv, kv_block=16)
        backend.forward(next(iter(engine_of(backend).chunks(lowered(100), size=100))), state, 1)
        assert state.num_bytes == 100 * backend.shape.kv_bytes_as(kv)
    head = tiny.SIZES["hidden_size"] // tiny.SIZES["num_attention_heads"]
    assert backend.shape.kv_bytes_as("fp8") * 4 * head == backend.shape.kv_bytes_as("host") * (head + 4)


def lowered(tokens: int) -> Any:
    import numpy as np

    from longva_model.engine.atoms import Lowered

    return Lowered(np.arange(tokens, dtype=np.int64) % 90)


def test_attention_that_passes_its_past_by_is_found() -> None:
    """transformers' own attention would see the new token alone, and say nothing."""
    walk = Walk(attention="sdpa")
    state = new_state(walk.config, kv="host")
    walk.extend(state, torch.arange(3, 9))
    with pytest.raises(ValueError, match="does not read blocks"):
        walk.extend(state, torch.tensor([9]))
    one_layer = Walk(attention="sdpa", num_hidden_layers=1)
    state = new_state(one_layer.config, kv="host")
    for _ in range(2):
        one_layer.extend(state, torch.tensor([9]))
    with pytest.raises(ValueError, match="does not read blocks"):
        state.mark()


def test_layers_that_keep_something_else_are_refused_by_name() -> None:
    windows = transformers.Qwen2Config(**tiny.SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=1)
    with pytest.raises(ValueError, match=r"kv=host .* layers of sliding_attention; use kv=device"):
        new_state(windows, kv="host")
    with pytest.raises(ValueError, match=r"kv=fp8 .* layers of conv"):
        new_state(transformers.Lfm2Config(layer_types=["conv", "full_attention"], num_hidden_layers=2), kv="fp8")
    with pytest.raises(ValueError, match="kv='disk': expected one of device, host, fp8"):
        new_state(transformers.Qwen2Config(**tiny.SIZES), kv="disk")


def test_what_does_not_fit_the_hosts_memory_is_refused_before_it_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "free_host_bytes", lambda: 10_000)
    backend = backend_with("host", None)
    computed = []
    monkeypatch.setattr(backend, "forward", lambda *args: computed.append(args))
    with pytest.raises(ValueError, match=r"kv=host: the keys and values of 1\d\d tokens take 0.0 GB .* 0.0 GB of it"):
        engine_of(backend).run(tiny.prompts(cells(), MEDIA))
    assert not computed and backend.new_state(20).length == 0


def test_what_is_no_number_is_looked_for_where_the_memory_is_for_one_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = backend_with("host", 16)
    engine, begun, own = engine_of(backend), [], backend.new_state

    def new_state(room: int) -> CroppableCache:
        begun.append(engine.state)
        return own(room)

    monkeypatch.setattr(backend, "new_state", new_state)
    # Not of a weight or an embedding, so that the prompt is run again.
    backend.decoder.norm.register_forward_hook(lambda module, given, out: out * float("nan"))
    with pytest.raises(ValueError, match=r"they arise in model\.norm"):
        engine.run(tiny.prompts(cells(), MEDIA))
    assert begun == [None, None]


def test_a_grid_is_refused_before_weights_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from longva_model.run.needle_model import NeedleModel

    class Task:
        name, unit, adds, rows = "cells", "frames", 1, ({"num_frames": 2000},)
        describe = staticmethod(lambda: {"needles_name": "icons"})

    def check(**args: Any) -> None:
        given = {"pretrained": "nano", "device": "cpu", **args}
        NeedleModel(ModelArgs.read(given)).check([Task()])  # type: ignore[list-item]

    # (2,001 frames of 4 tokens and 256 of text) in fp32, of 3 x 2 x 2 heads of 32: 12.7 MB; in 8 bits 3.6 MB.
    monkeypatch.setattr(processes, "total_bytes", lambda device: 10_000_000)
    with pytest.raises(ValueError, match=r"does not fit cpu: .*; ask for fewer frames, or use"):
        check()
    check(kv="host")
    check(kv="fp8")
    monkeypatch.setattr(processes, "free_host_bytes", lambda: 12_000_000)
    with pytest.raises(ValueError, match=r"kv=host: the keys and values of 8,260 tokens take 0.0 GB"):
        check(kv="host")


def test_pinned_memory_comes_in_powers_of_two() -> None:
    from vniah.contract.cost import SHAPES

    longva = SHAPES["LongVA-7B"]
    assert host_bytes(longva, 2 * 16384) == host_bytes(longva, 2 * 16384, pinned=False) == 2 * 16384 * 57344
    assert host_bytes(longva, 100) == 128 * 57344 and host_bytes(longva, 100, pinned=False) == 100 * 57344
    assert host_bytes(longva, 0) == 0


def test_free_memory_is_the_containers_where_that_is_less(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    assert 0 < processes.free_host_bytes() <= processes.total_bytes(DEVICE)
    (tmp_path / "memory.max").write_text("7000\n")
    (tmp_path / "memory.current").write_text("1000\n")
    monkeypatch.setattr(processes, "_CONTAINER", tmp_path)
    assert processes.free_host_bytes() == 6000
    # Files that were read once, as weights are, are no memory that is taken.
    (tmp_path / "memory.stat").write_text("anon 200\ninactive_file 600\nactive_file 100\n")
    assert processes.free_host_bytes() == 6600
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert processes.free_host_bytes() == 2200


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"kv": "host", "parallel": "ring"}, "kv=host keeps all of a prompt in one process"),
        ({"kv": "fp8", "scoring": "plain"}, "scoring=plain keeps nothing"),
        ({"kv_block": "64", "parallel": "ring"}, "kv=device,kv_block=64"),
        ({"kv": "int4"}, "expected one of device, host, fp8"),
    ],
)
def test_arguments_that_exclude_each_other(given: dict[str, str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        ModelArgs.read(given)


def test_beams_are_refused() -> None:
    prompts = tiny.prompts([Request((Text("what?"),), Generate(max_new_tokens=3, num_beams=2))])
    with pytest.raises(ValueError, match="num_beams=2 keeps keys and values on the device"):
        engine_of(backend_with("host", None)).run(prompts)


class TestLoaded:
    """The shipped model."""

    @staticmethod
    def runner(**given: Any) -> Runner:
        args = ModelArgs(pretrained="nano", device="cpu", journal="none", **given)
        return Runner(load_backend(args), args)

    def test_results_say_how_keys_and_values_were_kept(self, capsys: pytest.CaptureFixture[str]) -> None:
        device, host, fp8 = (self.runner(kv=kv) for kv in ("device", "host", "fp8"))
        assert "kv=fp8 is an approximation" in capsys.readouterr().err
        assert device.identity()["kv"] == "device" and host.identity()["kv"] == "host"
        told = fp8.identity()
        assert told["kv"] == "fp8" and 0.01 < told["kv_difference_from_own_forward"] < 0.3
        # A journal holds results up to rounding: the host's are the device's, those in 8 bits are others.
        assert host.settings_key() == device.settings_key() != fp8.settings_key()

    def test_answers_that_were_computed_with_another_kv_are_told(self, tmp_path: Path) -> None:
        grid = {"frames": 4, "depths": 0, "needles": "icons:0:2", "haystack": "synthetic:0:16", "device": "cpu"}

        def told(kv: str, limit: int | None = None) -> list[str]:
            run = vniah.evaluate("nano", "vniah_nano", **grid, kv=kv, journal=str(tmp_path / "j"), limit=limit)
            assert run.settings["model"]["kv"] == kv and run.settings["model"]["processes"] == 1
            warnings = run.settings["task"].get("warnings", [])
            return [text for text in warnings if "are from a journal" in text]

        assert told("host", limit=2) == told("host", limit=3) == []
        (said,) = told("device")
        assert re.match(r"3 of 4 answers .* computed with kv=host, and not with this run's kv=device", said)
        assert told("host")[0].startswith("1 of 4 answers")

    def test_a_fault_in_reading_is_found_when_a_model_is_loaded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = BlockRows.blocks
        monkeypatch.setattr(BlockRows, "blocks", lambda self, length: list(whole(self, length))[1:])
        with pytest.raises(ValueError, match=r"kv=host cannot be used for nano .* differ from those of its own"):
            self.runner(kv="host")
        monkeypatch.undo()
        monkeypatch.setattr(kv_blocks, "from_fp8", lambda rows, scale, dtype: rows.to(dtype))
        with pytest.raises(ValueError, match="kv=fp8 cannot be used for nano"):
            self.runner(kv="fp8")

    def test_other_attention_is_refused(self) -> None:
        with pytest.raises(ValueError, match="nano is run with attention sdpa, which reads none; use kv=device"):
            self.runner(kv="host", attn="sdpa")

    def test_the_check_leaves_the_block_that_was_asked_for(self) -> None:
        backend = self.runner(kv="device", kv_block=100).backend
        assert (backend.kv, backend.kv_block) == ("device", 100) != ("device", self_check._CHECKED_BLOCK)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("block", [64, 100])
def test_on_a_gpu_the_hosts_memory_gives_the_bits_of_the_device(block: int) -> None:
    walk = Walk()
    walk.model = walk.model.to("cuda", torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    ids_T = torch.randint(3, tiny.VOCAB, (3000,), generator=generator).cuda()
    found = []
    for kv in ("device", "host"):
        state = new_state(walk.config, kv=kv, kv_block=block)
        found.append(torch.cat([walk.extend(state, part) for part in ids_T.split(700)]))
    assert torch.equal(*found)
