"""Fixtures shared by every room's tests."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_server import LoopbackHub

# Tests run beside each other, where more threads make tiny models slower; and sums depend on their number.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of parity cases and real data beside the checkout; tests that need it skip without it."""
    root = Path(os.environ.get("VNIAH_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (root / "parity").is_dir():
        pytest.skip("the parity cases and real data (../shared) are not here")
    return root


_modules_frozen = 0


@pytest.fixture(autouse=True)
def modules_are_no_garbage() -> None:
    """After large imports: what they made stays, and collectors (lmms-eval runs one after each task) look elsewhere."""
    global _modules_frozen
    if len(sys.modules) > _modules_frozen + 100:
        gc.collect()
        gc.freeze()
        _modules_frozen = len(sys.modules)


@pytest.fixture(autouse=True)
def own_notices() -> None:
    """Each test is a run of its own: what an earlier one said is said again."""
    from vniah import notices

    notices.forget()


@pytest.fixture
def loopback_hub() -> Iterator[LoopbackHub]:
    """A Hub on 127.0.0.1 for one test; see hub_server.py."""
    hub = LoopbackHub().start()
    yield hub
    hub.stop()


@pytest.fixture
def online(loopback_hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    """The loopback Hub as this process's Hub, with an empty cache."""
    monkeypatch.setenv("HF_ENDPOINT", loopback_hub.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "VNIAH_NEEDLES", "TEXT_NIAH_HAYSTACK"):
        monkeypatch.delenv(name, raising=False)
    return loopback_hub


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run ``vniah ARGUMENTS`` by its entry; gives (exit code, stdout, stderr)."""
    from vniah import cli

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vniah", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip ``gpu`` tests where there is no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]  # keywords hold folders too
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
