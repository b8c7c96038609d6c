"""The launcher of several processes, and their end where it dies.

torchrun and accelerate launch start each process in a session of its own and end them all when one fails or when they
are told to stop. Killed outright they can end nothing, and what they have started waits for one another, for as long
as their process group has patience. mpirun and srun have daemons that see to it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from typing import NoReturn

_LOOK_EVERY = 1.0  # seconds
_watched: set[int] = set()


def end_with_launcher() -> None:
    """End this process soon after its launcher, whatever it waits for then; nothing where torchrun did not start it.

    To be called early: only what is still there can be watched. The parent of a process that was started by hand may
    go as it likes.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.getpid() in _watched:
        return
    _watched.add(os.getpid())
    parent = os.getppid()
    # It may have died before its number was read, and the number be another's.
    if _refused():
        _end("was gone before it began")
    threading.Thread(target=_watch, args=(parent,), name="vniah-launcher", daemon=True).start()


def _refused() -> bool:
    """Whether nobody listens where the launcher did before it started anything."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return False
    place = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    try:
        socket.create_connection(place, timeout=5).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        pass  # names and slow networks are for whoever needs the launcher's answer
    return False


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY)
    _end(f"(process {parent}) is gone")


def _end(how: str) -> NoReturn:
    """End the process here and now: its main thread may wait in a call that no exception reaches."""
    told = f"vniah: error: the launcher of process {os.environ.get('RANK', '?')} {how}, and the process ends with it\n"
    # Not by sys.stderr, which the main thread may hold, and which may lead to the launcher.
    with contextlib.suppress(OSError):
        os.write(2, told.encode())
    os._exit(1)
