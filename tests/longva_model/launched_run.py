"""One process of several that torchrun starts: ``torchrun launched_run.py FOLDER MODE``. For ``test_launcher.py``.

Modes: ``meet``, in which process 1 does not come to the meeting; ``gather``, in which it comes to no collective;
``late``, where it does not come and patience is short; ``through``, in which all comes to its end.
"""

from __future__ import annotations

import datetime
import os
import sys
import time
from pathlib import Path

from vniah.runs.launcher import end_with_launcher


def main(folder: Path, mode: str) -> None:
    end_with_launcher()
    import torch.distributed as dist

    from longva_model.run import processes

    first = os.environ["RANK"] == "0"
    processes._MEETING = datetime.timedelta(seconds=3 if mode == "late" else 600)
    if mode in ("gather", "through"):
        processes.join_processes("cpu")
    (folder / f"{mode}-{os.environ['RANK']}").write_text(str(os.getpid()))
    if mode != "through" and not first:
        time.sleep(600)
    if mode in ("meet", "late"):
        processes.join_processes("cpu")
    print(processes.gather(os.environ["RANK"]))
    # One of some 25 runs aborted at its end without this; gloo's threads may still hold tensors of the collective.
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
