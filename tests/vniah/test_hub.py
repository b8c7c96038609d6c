"""Downloads against a Hub on 127.0.0.1: cache first, resume, what is refused, and calls that would not end."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hub_server import LoopbackHub
from huggingface_hub import constants, get_session

from vniah import hub
from vniah.hub import Pulse, within


def random_bytes(n: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(n)


def test_first_download_then_cache(online: LoopbackHub) -> None:
    online.add_repo("org/set", {"a.json": "{}", "data/b.parquet": b"12345", "c.txt": "no"}, repo_type="dataset")
    folder = hub.fetch_dataset("org/set", allow_patterns=["*.json", "*.parquet"], progress=False)
    assert (folder / "a.json").read_text() == "{}"
    assert (folder / "data" / "b.parquet").read_bytes() == b"12345"
    assert not (folder / "c.txt").exists()

    before = len(online.requests)
    assert hub.fetch_dataset("org/set", allow_patterns=["*.json", "*.parquet"]) == folder
    assert len(online.requests) == before, "a cached snapshot makes no request"


def test_cached_use_with_the_hub_down(online: LoopbackHub) -> None:
    online.add_repo("org/set", {"a.json": "{}"})
    folder = hub.fetch_dataset("org/set", progress=False)
    online.stop()
    assert hub.fetch_dataset("org/set") == folder


def test_partial_cache_is_completed_and_never_passed_as_whole(online: LoopbackHub) -> None:
    online.add_repo("org/set", {"a.json": "{}", "b.json": "[]"})
    folder = hub.fetch_dataset("org/set", allow_patterns=["a.json"], progress=False)
    assert hub.cached_snapshot("org/set", "dataset") is None
    assert hub.fetch_dataset("org/set", progress=False) == folder
    assert (folder / "b.json").exists()


def test_snapshot_that_another_library_began(online: LoopbackHub) -> None:
    """transformers fetches file by file: what it leaves is completed, and serves as it is only without a Hub."""
    import huggingface_hub

    online.add_repo("org/net", {"config.json": "{}", "model.safetensors": b"12"}, repo_type="model")
    cache = Path(os.environ["HF_HUB_CACHE"])
    huggingface_hub.hf_hub_download("org/net", "config.json", cache_dir=cache, endpoint=online.url)
    assert hub.cached_snapshot("org/net") is None
    assert (hub.fetch_model("org/net", progress=False) / "model.safetensors").read_bytes() == b"12"

    online.add_repo("org/set", {"a.json": "{}", "b.txt": ""})
    found = huggingface_hub.hf_hub_download(
        "org/set", "a.json", repo_type="dataset", cache_dir=cache, endpoint=online.url
    )
    online.stop()
    assert hub.fetch_dataset("org/set", allow_patterns=["*.json"]) == Path(found).parent
    with pytest.raises(hub.HubUnreachableError):
        hub.fetch_dataset("org/set", allow_patterns=["*.txt"])


def test_refresh_finds_a_new_commit_and_revisions_stay_apart(online: LoopbackHub) -> None:
    first = online.add_repo("org/set", {"a.json": "1"})
    online.add_repo("org/set", {"a.json": "old"}, revision="v0")
    assert (hub.fetch_dataset("org/set", progress=False) / "a.json").read_text() == "1"
    online.add_repo("org/set", {"a.json": "2"})
    assert (hub.fetch_dataset("org/set", progress=False) / "a.json").read_text() == "1"
    assert (hub.fetch_dataset("org/set", refresh=True, progress=False) / "a.json").read_text() == "2"
    assert (hub.fetch_dataset("org/set", "v0", progress=False) / "a.json").read_text() == "old"
    assert (hub.fetch_dataset("org/set", first, progress=False) / "a.json").read_text() == "1"


def test_dropped_connection_resumes_by_range(online: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    content = random_bytes(1 << 20)
    online.add_repo("org/net", {"model.safetensors": content, "config.json": "{}"}, repo_type="model")
    online.drop("model.safetensors", after=300_000)
    folder = hub.fetch_model("org/net", progress=False)
    assert (folder / "model.safetensors").read_bytes() == content
    ranges = [r for method, path, r in online.requests if method == "GET" and path.endswith("model.safetensors")]
    assert ranges == ["", "bytes=300000-"]


def test_killed_process_resumes_where_it_stopped(online: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that gives up leaves its bytes; the next one asks for the rest only."""
    monkeypatch.setattr(hub, "ATTEMPTS", 1)
    content = random_bytes(1 << 20)
    online.add_repo("org/net", {"model.safetensors": content}, repo_type="model")
    online.drop("model.safetensors", after=500_000)
    online.drop("model.safetensors", after=0)
    with pytest.raises(hub.HubUnreachableError, match="what has arrived is kept"):
        hub.fetch_model("org/net", progress=False)
    assert hub.cached_snapshot("org/net") is None
    folder = hub.fetch_model("org/net", progress=False)
    assert (folder / "model.safetensors").read_bytes() == content
    assert online.requests[-1][2] == "" and ("GET", "bytes=500000-") in {(m, r) for m, _, r in online.requests}
    assert not list(Path(os.environ["HF_HUB_CACHE"]).rglob("*.resume"))


def test_damaged_file_is_refused_and_not_kept(online: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    content = random_bytes(50_000)
    online.add_repo("org/net", {"model.safetensors": content}, repo_type="model")
    blobs = Path(os.environ["HF_HUB_CACHE"]) / "models--org--net" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hashlib.sha256(content).hexdigest()}.resume").write_bytes(b"not the beginning of it")
    with pytest.raises(OSError, match="arrived damaged"):
        hub.fetch_model("org/net", progress=False)
    assert list(blobs.iterdir()) == []
    assert (hub.fetch_model("org/net", progress=False) / "model.safetensors").read_bytes() == content


@pytest.mark.parametrize("name", ["a.json", "b.parquet"])
def test_small_files_are_checked_by_their_hash_too(online: LoopbackHub, name: str) -> None:
    online.add_repo("org/set", {"a.json": "{}", "empty.txt": "", "b.parquet": b"table"})
    whole = hub.fetch_dataset("org/set", progress=False)
    assert (whole / "a.json").read_text() == "{}" and (whole / "empty.txt").read_bytes() == b""
    shutil.rmtree(os.environ["HF_HUB_CACHE"])
    repo = online.repos["dataset", "org/set"]["main"]
    file = repo.files[name]
    assert file.etag() and file.git_oid, "worked out of the right content, and remembered"
    file.content = b"?" * file.size
    with pytest.raises(OSError, match=f"{name} arrived damaged"):
        hub.fetch_dataset("org/set", progress=False)
    assert hub.cached_snapshot("org/set", "dataset") is None


@pytest.mark.parametrize("headers", [True, False])
@pytest.mark.parametrize("match", ["/api/datasets/org/set/revision", "/api/datasets/org/set/tree", "/resolve/"])
def test_a_hub_that_drips_is_given_up(
    online: LoopbackHub, monkeypatch: pytest.MonkeyPatch, match: str, headers: bool
) -> None:
    """Twice: what the first time left behind must not hold the second."""
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "0.3")
    monkeypatch.setattr(hub, "LISTING_TIMEOUT", 0.5)
    monkeypatch.setattr(hub, "PAUSE", 0.5)
    online.add_repo("org/set", {"a.json": "x" * 500_000, "b.json": "x" * 400_000})
    online.drip(match.removesuffix("/revision") if "revision" in match else match, 0.05, headers=headers)
    for _ in range(2):
        with pytest.raises(hub.HubUnreachableError, match="gave no answer"):
            hub.fetch_dataset("org/set", progress=False)
    online.faults.clear()
    assert (hub.fetch_dataset("org/set", progress=False) / "a.json").read_text() == "x" * 500_000


@pytest.mark.parametrize("status", [200, 302, 404])
@pytest.mark.parametrize("match", ["/api/datasets/org/set", "/api/datasets/org/set/tree", "/resolve/"])
def test_an_answer_without_end_is_refused(online: LoopbackHub, match: str, status: int) -> None:
    online.add_repo("org/set", {"a.json": "{}"})
    hooks = dict(get_session().event_hooks)
    online.flood(match, status, header="Location: /api/datasets/org/set/elsewhere" if status == 302 else "X-Nothing: 0")
    with pytest.raises(OSError, match=r"answered with more than 67,108,864 bytes|more than the 2 bytes") as caught:
        hub.fetch_dataset("org/set", progress=False)
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 400
    # What the kernel's buffers hold was not read.
    assert online.flooded.get(timeout=10) < 96 << 20 and online.flooded.empty()
    assert get_session().event_hooks == hooks


def test_a_packed_answer_is_bounded_by_what_it_may_grow_to(online: LoopbackHub) -> None:
    online.add_repo("org/set", {"a.json": "{}"})
    online.flood("/api/datasets/org/set/tree", header="Content-Encoding: deflate")
    with pytest.raises(hub.HubUnreachableError, match="answered with more than 65,536 bytes"):
        hub.fetch_dataset("org/set", progress=False)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_large_file_may_be_sent(online: LoopbackHub, monkeypatch: pytest.MonkeyPatch, elsewhere: bool) -> None:
    """By the host to which the Hub sends on, too, whose paths are its own."""
    monkeypatch.setattr(hub, "_MAX_BYTES", 10_000)
    content = random_bytes(1 << 20)
    online.add_repo("org/net", {"model.safetensors": content}, repo_type="model")
    if elsewhere:
        online.answer("/cdn/of/it", content)
        online.redirect("/org/net/resolve/", f"{online.url}/cdn/of/it")
    assert (hub.fetch_model("org/net", progress=False) / "model.safetensors").read_bytes() == content
    assert online.count("GET", "/cdn/of/it") == elsewhere


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 500_000,
        b'{"sha": ' + b"[" * 500_000,
        b"<html>",
        b"\xff\xfe",
        b"[7]",
        b'{"sha": 1' + b"0" * 5000 + b"}",
        b'{"sha": "../../../etc"}',
        b"null",
        b" " * (65 << 20),
    ],
)
@pytest.mark.parametrize("part", ["org/set", "org/set/tree"])
def test_nonsense_from_a_hub_is_one_line(online: LoopbackHub, part: str, body: bytes) -> None:
    online.add_repo("org/set", {"a.json": "{}"})
    online.answer(f"/api/datasets/{part}", body)
    with pytest.raises(hub.HubUnreachableError, match="org/set") as caught:
        hub.fetch_dataset("org/set", progress=False)
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "entry",
    [
        {"type": "file", "path": "a.json", "size": -1, "oid": "0" * 40},
        {"type": "file", "path": "a.json", "size": "many", "oid": "0" * 40},
        {"type": "file", "path": "a.json", "size": 1, "oid": "../../x"},
        {"type": "file", "path": "a.json", "size": 1},
        {"type": "file"},
        7,
    ],
)
def test_a_listing_that_makes_no_sense_is_one_line(online: LoopbackHub, entry: object) -> None:
    online.add_repo("org/set", {"a.json": "{}"})
    online.answer("/api/datasets/org/set/tree", json.dumps([entry]).encode())
    with pytest.raises(OSError, match="org/set") as caught:
        hub.fetch_dataset("org/set", progress=False)
    assert len(str(caught.value).splitlines()) == 1


def test_missing_repository_and_revision(online: LoopbackHub) -> None:
    with pytest.raises(hub.RepositoryMissingError, match=r"no dataset 'org/none'.*check the name"):
        hub.fetch_dataset("org/none", progress=False)
    online.add_repo("org/set", {"a.json": "{}"})
    with pytest.raises(hub.RepositoryMissingError, match="no revision 'v9'"):
        hub.fetch_dataset("org/set", "v9", progress=False)


def test_hub_down_or_broken_without_a_cache(online: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    online.fail("/api/datasets/org/set", status=503)
    with pytest.raises(hub.HubUnreachableError, match="answered 503"):
        hub.fetch_dataset("org/set", progress=False)
    online.stop()
    with pytest.raises(hub.HubUnreachableError, match=r"gave no answer.*HF_ENDPOINT"):
        hub.fetch_dataset("org/set", progress=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(hub.HubUnreachableError, match="HF_HUB_OFFLINE is set"):
        hub.fetch_dataset("org/set", progress=False)


@pytest.mark.parametrize("name", ["../evil.json", "/etc/evil.json", "data/../../evil.json", "C:\\evil.json"])
def test_file_name_that_leaves_its_folder_stops_the_download(online: LoopbackHub, name: str, tmp_path: Path) -> None:
    online.add_repo("org/set", {"good.json": "{}", name: "evil"})
    with pytest.raises(ValueError, match=r"org/set.*leaves its folder.*nothing was downloaded"):
        hub.fetch_dataset("org/set", progress=False)
    assert online.count("GET", "/resolve/") == 0
    assert not list(tmp_path.rglob("evil*")) and not list(tmp_path.rglob("good*"))


def test_pickle_weights_are_neither_fetched_nor_accepted(online: LoopbackHub) -> None:
    online.add_repo("org/old", {"pytorch_model.bin": b"x" * 10, "config.json": "{}"}, repo_type="model")
    with pytest.raises(ValueError, match=r"org/old has no \*\.safetensors"):
        hub.fetch_model("org/old", progress=False)
    assert online.count("GET", "pytorch_model.bin") == 0


def test_disk_too_small(online: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    online.add_repo("org/set", {"a.json": "{}" * 100})
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(OSError, match=r"org/set needs .* free"):
        hub.fetch_dataset("org/set", progress=False)


def test_cache_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert hub.hub_cache_dir() == Path.home() / ".cache" / "huggingface" / "hub"
    assert hub.hub_endpoint() == constants.HUGGINGFACE_CO_URL_HOME.rstrip("/")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert hub.hub_cache_dir() == tmp_path / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    assert hub.hub_cache_dir() == tmp_path / "elsewhere"


def test_load_dataset_reads_from_the_loopback_hub(loopback_hub: LoopbackHub, tmp_path: Path) -> None:
    """Stand-ins for benchmarks are served this way in other rooms' tests."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"question": ["a", "b"], "n": [1, 2]}), tmp_path / "t.parquet")
    loopback_hub.add_repo("org/set", {"data/test-00000-of-00001.parquet": tmp_path / "t.parquet"})
    code = (
        "import datasets; d = datasets.load_dataset('org/set', split='test'); print(list(d['question']), list(d['n']))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env=loopback_hub.env(tmp_path / "home"), capture_output=True, text=True
    )
    assert run.stdout.strip() == "['a', 'b'] [1, 2]", run.stderr
    assert loopback_hub.count("GET", "/resolve/") == 1


def test_a_call_in_time_gives_what_it_gives() -> None:
    assert within(60, lambda: 7) == 7 and within(60, lambda: None) is None

    def fails() -> None:
        raise LookupError("its own")

    with pytest.raises(LookupError, match="its own"):
        within(60, fails)


def test_a_call_without_end_is_left() -> None:
    hold = threading.Event()
    with pytest.raises(TimeoutError, match=r"no whole answer within 0\.05 s"):
        within(0.05, hold.wait)
    hold.set()


def test_a_trickle_is_a_pause_and_a_slow_line_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(hub.time, "monotonic", lambda: now)
    trickle, slow, busy = Pulse(60), Pulse(60), Pulse(60)
    for _ in range(100):
        now += 1
        trickle.bytes_came(2)
        slow.bytes_came(2048)
        busy.at_work()
    assert trickle.left_s < 0 < slow.left_s <= 60 and busy.left_s == 60
    now += 61
    assert slow.left_s < 0, "what came long ago buys no more than a pause"


def test_a_call_that_is_given_up_does_not_try_again() -> None:
    """A library that retries would go on beside later calls, with connections that it shares with them."""
    tries: list[int] = []

    def call() -> None:
        while True:
            try:
                tries.append(1)
                time.sleep(0.05)
                raise OSError("again")
            except Exception:
                continue

    with pytest.raises(TimeoutError):
        within(0.2, call)
    for thread in threading.enumerate():
        if thread.name == "within a deadline":
            thread.join(10)
            assert not thread.is_alive()
    assert tries
