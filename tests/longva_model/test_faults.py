"""Runs that are killed, refused, or out of disk end, run again, with what an undisturbed run gives, to the bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked")]
FRAMES = 200 + 2  # with the needles


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def told(folder: Path) -> Iterator[Any]:
    """What each mode of the program gave; one launch for all tests."""
    modes = ["undisturbed", "kills", "two", "full"]
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        program = Path(__file__).with_name("fault_run.py")
        command = [sys.executable, str(program), str(folder), *modes, *(["disk"] if mounted else [])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-3000:]
        yield json.loads(done.stdout.splitlines()[-1])
    finally:
        if mounted:
            subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture(scope="module")
def undisturbed(told: Any, folder: Path) -> str:
    """The results of a run that nothing happened to."""
    assert told["undisturbed"] == {"told": "", "rows": 96}
    return (folder / "undisturbed/results.json").read_text()


def test_twenty_kills_lose_at_most_the_leaf_in_flight(told: Any, folder: Path, undisturbed: str) -> None:
    runs = told["kills"]["runs"]
    assert [run["ended"] for run in runs] == [False] * 20 + [True]
    assert (folder / "kills/results.json").read_text() == undisturbed
    for run, after in zip(runs, [*(run["known"] for run in runs[1:]), range(96)], strict=True):
        # Nothing that was finished is computed again, and nothing computed is lost but the last.
        assert not set(run["known"]) & set(run["leaves"])
        assert set(run["known"]) | set(run["leaves"][:-1]) <= set(after)
        # Blocks of frames that were kept are not encoded again.
        assert run["frames"] <= FRAMES - run["frames_kept"]
    assert len({index for run in runs for index in run["leaves"]}) == 96
    # The kills were spread over the run, and some hit a block while it was written.
    assert sum(0 < len(run["known"]) < 96 for run in runs) > 10
    assert list((folder / "kills").glob("cache/embeddings/*/*.part"))


def test_two_processes_on_one_journal_are_refused(told: Any, folder: Path, undisturbed: str) -> None:
    assert "in use by another process" in told["two"]["told"]
    assert told["two"]["first_succeeds"]
    assert (folder / "two/results.json").read_text() == undisturbed


def test_a_file_size_limit_is_an_error_and_the_rerun_is_whole(told: Any, folder: Path, undisturbed: str) -> None:
    assert all("cannot write to the journal" in text for text in told["full"]["told"])
    assert 0 < told["full"]["before"] < 96
    assert told["full"]["last"] == ""
    assert (folder / "full/results.json").read_text() == undisturbed


def test_a_full_disk_is_an_error_and_the_rerun_with_room_is_whole(told: Any, undisturbed: str) -> None:
    if "disk" not in told:
        pytest.skip("a small disk cannot be mounted here")
    first, last = told["disk"]["first"], told["disk"]["last"]
    assert "cannot write to the journal" in first["told"]
    assert 0 < first["rows"] < 96
    assert not first["ended"]
    assert last == {"told": "", "rows": 96}
    assert told["disk"]["results"] == undisturbed
