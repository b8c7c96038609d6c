"""What one watches in a run of days: speed and memory with each line that is logged, and what the model can do.

With each checkpoint go the loss on held-out text and five cells of text NIAH, one a depth: the needle stands in a
held-out sequence of the trained length, and is found when each token of its number is the likeliest.

Shape legend: T tokens of a sequence, W ranks, P probes (sequences that are scored).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vniah.training.data.shards import HELD_OUT, read_arrow, ring_shard
from vniah.training.stages import IGNORE, Train

Ints = NDArray[np.int64]
DEPTHS = (0, 25, 50, 75, 100)
# Dense bf16 TFLOP/s by their makers' data sheets; of another device no MFU is told.
PEAK_TFLOPS = {"A100": 312.0, "H100": 989.0, "H200": 989.0, "B200": 2250.0}


def held_out_sequences(shards: Path) -> Iterator[Ints]:
    """The sequences, (T + 1,), that a prepare_text stage held out. ValueError: none."""
    path = shards / HELD_OUT
    rows = read_arrow(path)["input_ids"] if path.is_file() else ()
    if not len(rows):
        raise ValueError(f"{shards} holds no sequences out; prepare it anew with held_out: 4, say")
    for row in rows:
        yield np.asarray(row.values.to_numpy(), np.int64)


def text_probes(shards: Path, tokenizer: Any, length: int, *, seed: int) -> tuple[list[tuple[Ints, Ints]], int]:
    """Ids and labels, (T,) each, of held-out sequences and then of five cells of text NIAH; how many are the first.

    ValueError: the length does not hold the needle and its question.
    """
    from vniah.runs.grid import Cell
    from vniah.text.puzzles import make_puzzle

    def ids_of(text: str) -> Ints:
        return np.asarray(tokenizer(text, add_special_tokens=False).input_ids, np.int64)

    held_out = [ids_T[: length + 1] for ids_T in held_out_sequences(shards)]
    probes = [(ids_T[:-1], ids_T[1:]) for ids_T in held_out]
    for depth in DEPTHS:
        puzzle = make_puzzle(Cell(length=length, depth_percent=depth), seed=seed)
        assert puzzle.needle is not None
        needle, question, answer = (ids_of(text) for text in (puzzle.needle.text, puzzle.question, puzzle.answer))
        room = length + 1 - len(needle) - len(question) - len(answer)
        if room < 1:
            raise ValueError(f"{length} tokens do not hold a needle and its question, which take {length + 1 - room}")
        hay, at = held_out[0][:room], room * depth // 100
        ids_T = np.concatenate([hay[:at], needle, hay[at:], question, answer])
        labels_T = np.full(length, IGNORE)
        labels_T[-len(answer) :] = answer
        probes.append((ids_T[:-1], labels_T))
    return probes, len(held_out)


class TextWatch:
    """Scores probes with the model that a Trainer trains; the ranks of a ring share each, and rings share them out."""

    def __init__(self, probes: list[tuple[Ints, Ints]], num_held_out: int, ring: int) -> None:
        self._probes, self._num_held_out, self._ring = probes, num_held_out, ring

    def __call__(self, trainer: Any) -> dict[str, float]:
        """{"held_out_loss", "held_out_accuracy", "text_niah"}. Every rank calls it."""
        import torch

        world, rank = trainer.args.world_size, trainer.args.process_index
        rings, shard = world // self._ring, rank % self._ring
        sums_P2 = torch.zeros(len(self._probes), 2, device=trainer.args.device)
        model = trainer.model_wrapped
        model.eval()
        with torch.no_grad(), trainer.compute_loss_context_manager():
            # Layers that are sharded are gathered by all ranks: each runs as often as the others.
            for turn in range(-(-len(self._probes) // rings)):
                number = turn * rings + rank // self._ring
                ids_T, labels_T = self._probes[number % len(self._probes)]
                batch = {"input_ids": ids_T, "shift_labels": labels_T, "position_ids": np.arange(len(ids_T))}
                whole = {key: torch.from_numpy(value)[None] for key, value in batch.items()}
                part = ring_shard(whole, shard, self._ring) if self._ring > 1 else whole
                out = model(**{key: value.to(trainer.args.device) for key, value in part.items()}, num_items_in_batch=1)
                if number < len(self._probes):
                    sums_P2[number] = torch.stack([out["loss"].float(), out["hits"].float()])
        model.train()
        found = trainer.accelerator.reduce(sums_P2, "sum").cpu().numpy()
        counts = np.array([(labels_T != IGNORE).sum() for _, labels_T in self._probes])
        loss, hits = found[: self._num_held_out].sum(0) / counts[: self._num_held_out].sum()
        cells = found[self._num_held_out :, 1] == counts[self._num_held_out :]
        return {"held_out_loss": float(loss), "held_out_accuracy": float(hits), "text_niah": float(cells.mean())}


def watched(base: type[Any], train: Train, ring: int) -> Any:
    """A Trainer class whose log lines say tokens a second, MFU and peak memory, of all ranks together.

    MFU counts the decoder's matrices, its attention and its head, forwards and backwards once, whatever is run again or
    frozen; a tower's work is left out.
    """
    import torch

    from longva_model.backends.backend import decoder_shape

    class Watched(base):
        _tokens, _flops, _since = 0, 0.0, 0.0

        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            self._since = self._since or time.perf_counter()
            if "input_ids" in inputs:  # the nano tower, and its calibration, read pictures alone
                rows, length = inputs["input_ids"].shape
                shape = decoder_shape(getattr(self.model.config, "text_config", self.model.config), 0, 2)
                self._tokens += rows * length
                whole = shape.forward_flops(length * ring) + shape.logits_flops(length * ring)
                self._flops += 3 * rows * whole / ring
            return super().training_step(model, inputs, *args, **kwargs)

        def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            super().log({**logs, **self._speed()} if "loss" in logs and self._tokens else logs, *args, **kwargs)

        def _speed(self) -> dict[str, float]:
            seconds = time.perf_counter() - self._since
            cuda = torch.cuda.is_available()
            peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0
            mine = torch.tensor([self._tokens, self._flops, peak], dtype=torch.float64)
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            of_all_W3 = self.accelerator.gather(mine[None].float().to(self.args.device)).double()
            self._tokens, self._flops, self._since = 0, 0.0, time.perf_counter()
            told = {"tokens_per_second": round(float(of_all_W3[:, 0].sum()) / seconds, 1)}
            if cuda:
                told["peak_gib"] = round(float(of_all_W3[:, 2].max()), 2)
                name = torch.cuda.get_device_name()
                tflops = next((rate for part, rate in PEAK_TFLOPS.items() if part in name), None)
                if tflops and train.precision == "bf16":
                    rate = float(of_all_W3[:, 1].sum()) / seconds / len(of_all_W3)
                    told["mfu"] = round(rate / (tflops * 1e12), 4)
            return told

    return Watched


Watch = Callable[[Any], dict[str, float]]
