"""Several processes end with the launcher that started them, and do not wait for ever for one that does not come."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("launched_run.py")
SECONDS = 120.0  # far more than any step takes on a busy machine


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC")}
    return {**kept, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", **more}


def until(holds: Callable[[], bool]) -> bool:
    """Whether something comes to hold."""
    end = time.monotonic() + SECONDS
    while not (held := holds()) and time.monotonic() < end:
        time.sleep(0.1)
    return held


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # One that has ended and that nobody has asked about yet is none.
    return subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True).stdout[:1] != "Z"


@pytest.fixture
def torchrun(tmp_path: Path) -> Iterator[Callable[[str, int], subprocess.Popen[str]]]:
    """Starts two processes in a mode, at a port; whatever is left of them at the end of the test is killed."""

    def start(mode: str, port: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
        return subprocess.Popen(
            [*command, str(PROGRAM), str(tmp_path), mode],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    yield start
    for path in tmp_path.glob("*-[01]"):
        if alive(int(path.read_text())):
            os.kill(int(path.read_text()), signal.SIGKILL)


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is killed outright there")
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["meet", "gather"])
def test_a_killed_launcher_takes_its_processes_along(
    mode: str, torchrun: Callable[[str, int], subprocess.Popen[str]], tmp_path: Path
) -> None:
    """They met for seven days, and a run at the same port met them."""
    port = free_port()
    launcher = torchrun(mode, port)
    written = [tmp_path / f"{mode}-{rank}" for rank in range(2)]
    assert until(lambda: all(path.is_file() and path.read_text() for path in written))
    launcher.kill()
    told, _ = launcher.communicate(timeout=SECONDS)  # to the end of what the processes hold open: their own end
    # The first to end may be told of by its connection to the other before the launcher is looked for.
    assert f"(process {launcher.pid}) is gone, and the process ends with it" in told, told
    assert not any(alive(int(path.read_text())) for path in written)
    again = torchrun("through", port)
    told, _ = again.communicate(timeout=SECONDS)
    assert again.returncode == 0 and told.count("['0', '1']") == 2, told


@pytest.mark.slow
def test_a_process_that_does_not_come_is_named(torchrun: Callable[[str, int], subprocess.Popen[str]]) -> None:
    launcher = torchrun("late", free_port())
    told, _ = launcher.communicate(timeout=SECONDS)
    assert launcher.returncode
    assert "1 of 2 processes came to share this run, not 1 within 0:00:03; see what the missing ones say" in told


@pytest.mark.slow
def test_nobody_else_at_the_meeting_is_one_line(tmp_path: Path) -> None:
    """A process that was started by hand, and whose partner was not."""
    given = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, str(PROGRAM), str(tmp_path), "late"]
    done = subprocess.run(command, env=environment(**given), capture_output=True, text=True, timeout=SECONDS)
    assert "ConnectionError: the 2 processes do not meet (" in done.stderr.splitlines()[-1]
    assert "1/2 clients joined" in done.stderr


def test_a_process_whose_launcher_is_gone_already_does_not_begin() -> None:
    given = {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": "True", "RANK": "3"}
    given |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-c", "from vniah.cli import main; main()", "--version"]
    done = subprocess.run(command, env=environment(**given), capture_output=True, text=True, timeout=SECONDS)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("vniah: error: the launcher of process 3 was gone before it began")


@pytest.mark.skipif(sys.platform == "win32", reason="parents do not change there")
@pytest.mark.parametrize("launched", [False, True])
def test_the_shell_of_a_process_may_go(launched: bool, tmp_path: Path) -> None:
    """As under nohup; only torchrun's own are watched."""
    (tmp_path / "program.py").write_text(
        "import os, pathlib, sys, time\n"
        "from vniah.runs import launcher\n"
        "launcher._LOOK_EVERY = 0.1\n"
        "launcher.end_with_launcher()\n"
        "place = pathlib.Path(sys.argv[1])\n"
        "(place / 'begun').touch()\n"
        "while not (place / 'gone').exists():\n"
        "    time.sleep(0.1)\n"
        "time.sleep(2)\n"
        "(place / 'ended').touch()\n"
    )
    shell = '"$0" "$1/program.py" "$1" & while [ ! -e "$1/begun" ]; do sleep 0.1; done'
    given = {"WORLD_SIZE": "2", "RANK": "0", **({"TORCHELASTIC_RUN_ID": "none"} if launched else {})}
    command = ["sh", "-c", shell, sys.executable, str(tmp_path)]
    with subprocess.Popen(command, env=environment(**given), stderr=subprocess.PIPE, text=True) as process:
        process.wait(SECONDS)
        (tmp_path / "gone").touch()
        _, told = process.communicate(timeout=SECONDS)  # of the program too
    assert (tmp_path / "ended").exists() is not launched
    assert ("is gone, and the process ends with it" in told) is launched


@pytest.mark.slow
def test_processes_of_several_machines_are_numbered_on_each() -> None:
    """By a launcher that says ranks alone, and deals them in turn: two of one machine had one device."""
    program = (
        "import os, socket; socket.gethostname = lambda: os.environ['MACHINE']\n"
        "from longva_model.run import processes; processes.join_processes('cpu')\n"
        "print(processes.gather((processes.local_rank(), os.environ['LOCAL_WORLD_SIZE'])), flush=True); os._exit(0)"
    )
    group = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    told = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env=environment(RANK=str(rank), MACHINE=machine, **group),
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank, machine in enumerate("aba")
    ]
    assert {process.communicate(timeout=SECONDS)[0].strip() for process in told} == {"[(0, '2'), (0, '1'), (1, '2')]"}
