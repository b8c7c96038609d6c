"""Memory of sharded training on two gloo ranks: the host while a model is read, and a rank's tensors in a step.

    python benchmarks/training_memory.py [--hidden 768] [--layers 8] [--tokens 256] [--json memory.json]

CPU processes pass for GPUs. "host" is the growth of a rank's resident memory until its model is sharded. All cases run
in one process, and memory that one has freed the next takes again unseen: it is sound for the first of them alone.
"device" is the peak of a rank's tensors in the second step of four micro-batches (torch's MemTracker), by the
plan, and with gradients summed over ranks once a step.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

from harness import options, table

FSDP = Path(__file__).parents[1] / "tests" / "training"
CASES = ("text", "text, all ranks read, summed once a step", "assemble", "assemble, all ranks read")
ACCUMULATION = 4
VOCABULARY = 2000


def decoder_config(given: Any) -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=given.hidden, intermediate_size=3 * given.hidden,
        num_hidden_layers=given.layers, num_attention_heads=8, num_key_value_heads=2, tie_word_embeddings=False,
        max_position_embeddings=4096, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip


def write_models(folder: Path, given: Any) -> None:
    """A random decoder with a tokenizer, and a tower."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel, Qwen2ForCausalLM

    from vniah.training.nano.vocabulary import build_tokenizer

    torch.manual_seed(0)
    Qwen2ForCausalLM(decoder_config(given)).save_pretrained(folder / "decoder")
    build_tokenizer().save_pretrained(folder / "decoder")
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4}
    CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=32, patch_size=8)).save_pretrained(folder / "tower")


class Batches:
    """Random text of the same length everywhere."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, item: int) -> dict[str, Any]:
        import torch

        ids = torch.randint(0, VOCABULARY, (1, self.tokens), generator=torch.Generator().manual_seed(item))
        return {"input_ids": ids, "labels": ids}


def measure(case: str, folder: Path, given: Any) -> dict[str, Any]:
    """One rank's figures of a case, in bytes."""
    import torch
    from torch.distributed._tools.mem_tracker import MemTracker
    from transformers import AutoModelForCausalLM, TrainerCallback

    from vniah.training import align, fit, load
    from vniah.training.losses import install_loss
    from vniah.training.stages import AlignStage, TowerStage, Train, VisionData

    train = Train(
        lr=1e-3, steps=2, accumulation=ACCUMULATION, precision=given.precision, checkpointing="full", sharding="fsdp2"
    )
    found: dict[str, Any] = {}
    arguments = fit.training_arguments

    def training_arguments(*args: Any, **kwargs: Any) -> Any:
        made = arguments(*args, **kwargs)
        if "summed once" in case:
            made.accelerator_config.gradient_accumulation_kwargs["sync_each_batch"] = False
        return made

    class Watch(TrainerCallback):
        def __init__(self, trainer: Any) -> None:
            self.trainer, self.tracker = trainer, MemTracker()

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 0:
                found["host"] = resident("VmHWM") - before
            elif case.startswith("text"):  # of a tower whose input asks for no gradient MemTracker raises
                self.tracker.track_external(self.trainer.model, self.trainer.optimizer)
                self.tracker.__enter__()
                training_step = self.trainer.training_step

                def step(*args: Any, **kwargs: Any) -> Any:
                    self.tracker.reset_mod_stats()  # it keeps those of one pass of a module
                    return training_step(*args, **kwargs)

                self.trainer.training_step = step

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2 and case.startswith("text"):
                self.tracker.__exit__(None, None, None)
                found["device"] = self.tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]

    run_trainer = fit.run_trainer

    def watched(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        trainer.add_callback(Watch(trainer))
        return run_trainer(trainer, *args, **kwargs)

    stage: Any = TowerStage(name="memory", train=train)
    with ExitStack() as changes:
        change = changes.enter_context
        change(mock.patch.object(fit, "run_trainer", watched))
        change(mock.patch.object(fit, "training_arguments", training_arguments))
        if "all ranks read" in case:
            change(mock.patch.object(load, "has_weights", lambda _: True))
            change(mock.patch.object(align, "has_weights", lambda _: True))
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = resident("VmRSS")
        if case.startswith("assemble"):
            data = VisionData(json=("none.json",))
            where = {"model_from": str(folder / "decoder"), "tower_from": str(folder / "tower")}
            stage = AlignStage(name="memory", train=train, data=data, parts=("projector", "decoder", "tower"), **where)
            model, _ = align.load_or_assemble(stage, str, seed=0)
            install_loss(model, without_visuals=lambda: align.empty_picture(model))
        else:
            model = install_loss(load.load(AutoModelForCausalLM, str(folder / "decoder"), train))
        found["parameters"] = sum(p.numel() for p in model.parameters())
        fit.fit(model, Batches(given.tokens), stage, folder / case.replace(" ", "-"), seed=0, steps=2)
    return found


def resident(key: str) -> int:
    """Resident memory of this process (Linux) in bytes: now (VmRSS) or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))


def launched(folder: Path, given: Any) -> list[dict[str, Any]]:
    """The figures of both ranks, by case."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", __file__]
    sizes = [f"--{name}={getattr(given, name)}" for name in ("hidden", "layers", "tokens", "precision")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "HF_HUB_OFFLINE": "1"}
    command = [*torchrun, *sizes, "--folder", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3600, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def planned(given: Any, parameters: int) -> int:
    """What the plan says of a rank's tensors in the text case."""
    from vniah.contract.cost import ModelShape
    from vniah.training.plan import memory
    from vniah.training.stages import Train

    shape = ModelShape(
        layers=given.layers, hidden=given.hidden, intermediate=3 * given.hidden, heads=8, kv_heads=2,
        head_dim=given.hidden // 8, vocab=VOCABULARY,
    )  # fmt: skip
    train = Train(lr=1e-3, steps=2, precision=given.precision, checkpointing="full", sharding="fsdp2")
    return memory(shape, train, tokens=given.tokens, gpus=2, trained=parameters).peak


def main(given: Any) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_models(folder, given)
        ranks = launched(folder, given)
    rows, told = [], {}
    for case in CASES:
        told[case] = [one[case] for one in ranks]
        size = 4 * told[case][0]["parameters"]
        plan = planned(given, told[case][0]["parameters"]) if case.startswith("text") else 0
        told[case][0]["planned"] = plan
        rows.append(
            {
                "case": case,
                "model MiB": f"{size / 2**20:.0f}",
                **{f"host of rank {n}": f"{one['host'] / size:.2f} x" for n, one in enumerate(told[case])},
                **{
                    f"device of rank {n} MiB": f"{one.get('device', 0) / 2**20:.0f}" for n, one in enumerate(told[case])
                },
                "planned": f"{plan / 2**20:.0f}" if plan else "",
            }
        )
    table(rows)
    if given.json:
        Path(given.json).write_text(json.dumps(told))


if __name__ == "__main__":
    arguments = options(__doc__, hidden=768, layers=8, tokens=256, precision=("fp32", "bf16"), json="", folder="")
    if arguments.folder:
        sys.path.insert(0, str(FSDP))
        import fsdp_on_gloo

        fsdp_on_gloo.pass_for_accelerators()
        # Once to warm up: what is imported on the way is no model's memory.
        report = {case: measure(case, Path(arguments.folder), arguments) for case in (CASES[0], *CASES)}
        (Path(arguments.folder) / f"rank{os.environ['RANK']}.json").write_text(json.dumps(report))
    else:
        main(arguments)
