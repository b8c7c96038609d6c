"""Joining other processes, the room on a device, and windows of jobs."""

from __future__ import annotations

import datetime
import os
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image as PILImage

from longva_model.pictures.opening import ArrayFrames
from longva_model.prompts.prompting import Prompt
from longva_model.run import batches, processes
from vniah.contract.requests import Frames, Request, Target
from vniah.notices import recorded

CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({"LOCAL_RANK": "3", "RANK": "11"}, 3),
        ({"SLURM_LOCALID": "2", "RANK": "10"}, 2),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "1", "RANK": "5"}, 1),
        ({"MPI_LOCALRANKID": "4", "RANK": "12"}, 4),
        ({"RANK": "13"}, 5),
        ({}, 0),
    ],
)
def test_each_process_takes_a_device_of_its_own(
    environment: dict[str, str], rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher that does not name local ranks put every process on the first device."""
    without_launcher(monkeypatch)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert processes.local_rank() == rank and processes.pick_device("cuda") == torch.device("cuda", rank)


def without_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*processes._LOCAL_RANKS, "LOCAL_WORLD_SIZE", "RANK"):
        # Set first, so that what is written meanwhile goes with the test.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_a_process_that_is_shown_one_device_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """srun --gpus-per-task=1: it saw cuda:0 alone and asked for cuda:3."""
    without_launcher(monkeypatch)
    monkeypatch.setenv("SLURM_LOCALID", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert processes.local_rank() == 0 and processes.pick_device("cuda") == torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("hosts", "local"),
    [
        ("a a a b b b", [0, 1, 2, 0, 1, 2]),  # rank modulo four devices gave the second machine 3, 0, 1
        ("a b a b a b", [0, 0, 1, 1, 2, 2]),  # ... and in this order both machines 0, 2, 0 and 1, 3, 1
        ("a b b b c a", [0, 0, 1, 2, 0, 1]),
    ],
)
def test_processes_are_numbered_by_machine_where_the_launcher_does_not(
    hosts: str, local: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = hosts.split()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    found = []
    for rank, machine in enumerate(machines):
        without_launcher(monkeypatch)
        monkeypatch.setenv("RANK", str(rank))
        processes._number_here(machines, rank)
        found.append(processes.local_rank())
        assert os.environ["LOCAL_WORLD_SIZE"] == str(machines.count(machine))
    assert found == local


def test_what_the_launcher_says_of_a_machine_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    without_launcher(monkeypatch)
    monkeypatch.setenv("SLURM_LOCALID", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "7")
    processes._number_here(["a", "a"], 1)
    assert processes.local_rank() == 2 and os.environ["LOCAL_WORLD_SIZE"] == "7" and "LOCAL_RANK" not in os.environ


def test_two_processes_on_one_device_are_told_of() -> None:
    before = len(recorded())
    processes._say_shared(["GPU-a", "GPU-b", "GPU-c"])
    assert len(recorded()) == before
    processes._say_shared(["GPU-a", "GPU-b", "GPU-c", "GPU-b"])
    (said,) = recorded()[before:]
    assert said.startswith("processes 1, 3 have one device, GPU-b") and "LOCAL_RANK" in said


def test_what_the_allocator_holds_and_does_not_use_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cached blocks counted as used, so that the same prompt was a branch in one call and a ring in the next."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 30)
    assert processes.free_bytes(CUDA) == 50


def test_a_group_waits_for_a_process_that_has_more_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **options: told.update(options, backend=backend))
    monkeypatch.setattr(processes, "_meet", lambda: (None, 1, 2))
    processes.join_processes("cpu")
    assert told["backend"] == "gloo" and told["timeout"] > datetime.timedelta(days=1)


@pytest.mark.parametrize(("backends", "beside"), [("cuda:nccl", True), ("cpu:gloo,cuda:nccl", False)])
def test_objects_do_not_travel_over_devices(backends: str, beside: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate's group has nccl alone, in which waiting occupies the device."""
    made: list[dict[str, Any]] = []
    group = SimpleNamespace()
    monkeypatch.setattr(processes, "_beside", None)
    monkeypatch.setattr(dist, "get_backend_config", lambda: backends)
    monkeypatch.setattr(dist, "new_group", lambda **options: (made.append(options), group)[1])
    assert [processes.objects_group(), processes.objects_group()] == ([group, group] if beside else [None, None])
    assert len(made) == beside and all(options["backend"] == "gloo" for options in made)


# Windows of jobs: order kept, pixels in memory bounded.


def prompt(**media: Any) -> Prompt:
    return Prompt(request=Request((Frames("a", 0, 1),), Target("x")), media=media)


def test_images_and_frames_in_memory_end_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_WINDOW_PIXELS", 100)
    image = PILImage.new("RGB", (6, 10))
    clip = ArrayFrames(np.zeros((6, 2, 5, 3), np.uint8))
    assert clip.pixels_in_memory == 60
    prompts = [prompt(a=image), prompt(a=image), prompt(b=clip), prompt(b=clip, c=object()), prompt(a=image), prompt()]
    found = [[job for job, _ in window] for window in batches.windows(range(6), lambda job: prompts[job])]
    assert found == [[0, 1], [2, 3], [4, 5]]


def test_a_prompt_larger_than_a_window_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_WINDOW_PIXELS", 10)
    image = PILImage.new("RGB", (6, 10))
    found = list(batches.windows(range(3), lambda job: prompt(**{str(job): image})))
    assert [[job for job, _ in window] for window in found] == [[0], [1], [2]]
