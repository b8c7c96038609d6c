"""``vniah doctor``: each check finds what is there and what is not, and the exit code says whether a run can start."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from hub_server import LoopbackHub
from typer.testing import CliRunner, Result

from vniah.commands import doctor
from vniah.commands.doctor import Finding
from vniah.visual.settings import DEFAULT_NEEDLES


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("VNIAH_CACHE", str(tmp_path / "ours"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


def states(findings: Iterable[Finding]) -> dict[str, str]:
    return {finding.text: finding.state for finding in findings}


def only(findings: Iterable[Finding], part: str) -> Finding:
    (found,) = [finding for finding in findings if part in finding.text]
    return found


def test_versions_against_bounds() -> None:
    numpy = importlib.metadata.version("numpy")
    required = [
        "numpy>=1",
        "pillow>=999",
        "no_such-package>=1.5",
        "torch>=0.1; python_version < '3'",
        "decord-too>=1; extra == 'decord'",
        "trl>=999; extra == 'train'",
    ]
    found = list(doctor.packages(required, ">=3.9"))
    assert only(found, "1 more packages").state == "ok" and not any(numpy in f.text for f in found)
    pillow = only(found, "pillow")
    assert pillow.state == "missing" and "is installed" in pillow.text and pillow.fix == "pip install 'pillow>=999'"
    absent = only(found, "no-such-package")
    assert absent.state == "missing" and "not installed" in absent.text
    assert only(found, "trl").state == "note", "an extra is no reason to stop"
    assert not any("torch" in f.text for f in found), "a requirement for another system does not count"
    assert only(doctor.packages([], ">=99"), "Python").state == "missing"


def test_our_own_metadata_is_met_here() -> None:
    found = list(doctor.packages())
    assert "missing" not in states(found).values()
    assert any(f.text.startswith("torch ") for f in found) and any(f.text.startswith("lmms-eval ") for f in found)


def with_versions(monkeypatch: pytest.MonkeyPatch, **known: str | None) -> None:
    """These packages as installed in these versions, or not at all; the others as they are."""
    real = importlib.metadata.version

    def version(name: str) -> str:
        found = known.get(name.replace("-", "_"), real)
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found if isinstance(found, str) else found(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_known_breaks_of_lmms_eval_are_named_with_their_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    with_versions(monkeypatch, filelock="4.3.0", av="16.0.1", lmms_eval="0.7.3")
    found = list(doctor.packages(["filelock>=3.13", "av>=14"], ">=3.10"))
    filelock = only(found, "filelock")
    assert filelock.state == "missing" and filelock.fix == "pip install 'filelock<4.3'" and "_api" in filelock.text
    assert only(found, "av 16.0.1").fix == "pip install 'av<16'"


def test_installed_versions_against_the_lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lock = tmp_path / "the constraints.txt"
    lock.write_text("# made\nnumpy==1.0 ; python_version < '3'\nnumpy==2.0 ; python_version >= '3'\ntorch==2.14.1\n")
    required = ["numpy>=1", "torch>=2", "gone>=1", "trl>=1; extra == 'train'"]
    with_versions(monkeypatch, numpy="2.0", torch="2.14.1+cpu", gone=None)
    (found,) = doctor.locked(required, lock)
    assert found.state == "ok" and found.text.startswith("2 packages as locked")
    with_versions(monkeypatch, numpy="2.0", torch="2.15.0", gone=None)
    apart = only(doctor.locked(required, lock), "torch 2.15.0 (tested with 2.14.1)")
    assert apart.state == "note" and apart.fix == f"pip install -c '{lock}' --upgrade torch"
    assert only(doctor.locked(required, tmp_path / "none"), "not readable").state == "note"


def test_the_packaged_lock_is_that_of_the_checkout() -> None:
    assert doctor.LOCK.read_text() == (Path(__file__).parents[2] / "constraints.txt").read_text()


def test_uninstalled_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", gone)
    assert [(f.state, f.fix) for f in doctor.packages()] == [("missing", "pip install .")]


def test_device_kernel_and_decoder_are_tried() -> None:
    assert all(f.state == "ok" for f in doctor.devices())
    assert "ok" in states(doctor.attention()).values()
    assert only(doctor.decoders(), "PyAV").state == "ok"
    assert "h264" in only(doctor.decoders(), "PyAV").text


def test_harness_finds_our_model_and_tasks() -> None:
    pytest.importorskip("lmms_eval")
    found = list(doctor.harness())
    assert only(found, "longva_ring").state == "ok"
    assert only(found, "tasks and").state == "ok"


def test_without_lmms_eval_the_core_works(monkeypatch: pytest.MonkeyPatch) -> None:
    with_versions(monkeypatch, lmms_eval=None, filelock="4.3.0")
    (found,) = doctor.harness()
    assert found.state == "note" and "vniah run works" in found.text
    assert "missing" not in states(doctor.packages(["lmms-eval>=0.7.3", "filelock<4.3"], ">=3.10")).values()
    done = run_doctor()
    assert done.exit_code == 0 and "The core can run: vniah run" in done.output, done.output


def test_harness_without_an_entry_point_or_with_a_broken_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lmms_eval")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [])
    (found,) = doctor.harness()
    assert found.state == "missing" and "not registered" in found.text

    def broken() -> Any:
        raise ImportError("no such module")

    entry = SimpleNamespace(name="vniah", load=broken)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry])
    (found,) = doctor.harness()
    assert found.state == "missing" and "no such module" in found.text


def test_harness_without_tasks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("lmms_eval")
    monkeypatch.setattr("vniah.lmms_plugin.tasks_dir", lambda: tmp_path)
    assert only(doctor.harness(), "no task 'vniah'").state == "missing"


def test_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert set(states(doctor.caches()).values()) <= {"ok", "note"}
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1e9))
    low = only(doctor.caches(), "Hub cache")
    assert low.state == "note" and "HF_HOME" in low.fix
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VNIAH_CACHE", str(tmp_path / "file" / "below"))
    blocked = only(doctor.caches(), "our cache")
    assert blocked.state == "missing" and "VNIAH_CACHE" in blocked.fix


def test_hub_is_asked_only_on_demand(loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", loopback_hub.url)
    assert "not asked" in only(doctor.hub(), loopback_hub.url).text and not loopback_hub.requests
    assert only(doctor.hub(online=True), loopback_hub.url).text.endswith("answers")
    loopback_hub.fail("/", status=503)
    assert only(doctor.hub(online=True), loopback_hub.url).text.endswith("error 503")
    loopback_hub.stop()
    down = only(doctor.hub(online=True), loopback_hub.url)
    assert down.state == "note" and "does not answer" in down.text
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert only(doctor.hub(online=True), "offline").fix == "unset HF_HUB_OFFLINE"


def test_cached_needles_are_noticed(loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from vniah.hub import fetch_dataset
    from vniah.needles.sources import PATTERNS

    monkeypatch.setenv("HF_ENDPOINT", loopback_hub.url)
    assert only(doctor.hub(), f"needles {DEFAULT_NEEDLES}").fix == "vniah download needles"
    loopback_hub.add_repo(DEFAULT_NEEDLES, {"needles.json": "[]"})
    fetch_dataset(DEFAULT_NEEDLES, allow_patterns=PATTERNS, progress=False)
    assert only(doctor.hub(), f"needles {DEFAULT_NEEDLES}").state == "ok"


def run_doctor(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(doctor.command)
    return CliRunner().invoke(app, arguments)


def test_exit_code_follows_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lmms_eval")
    good = run_doctor()
    assert good.exit_code == 0, good.output
    assert "The main job can run" in good.output and "vniah download needles" in good.output

    def lacking() -> Iterator[Finding]:
        yield Finding("missing", "torch: not installed", "pip install torch")

    monkeypatch.setattr(doctor, "packages", lacking)
    bad = run_doctor()
    assert bad.exit_code == 1
    assert "To run at all\n  pip install torch" in bad.output and "1 thing missing" in bad.output
