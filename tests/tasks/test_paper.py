"""The group of the paper's tasks: its parts exist in lmms-eval, need no login, and never count an unjudged zero."""

from __future__ import annotations

import importlib
import os
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest

from vniah.tasks.paper import upstream

pytest.importorskip("lmms_eval")


@pytest.fixture(scope="module")
def manager() -> Any:
    from lmms_eval.tasks import TaskManager

    from vniah.lmms_plugin import install_task_hook, tasks_dir

    install_task_hook()  # as lmms-eval has done by now, where no other test asked for its models
    return TaskManager(include_path=str(tasks_dir()))


def leaves(manager: Any, group: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and configuration of each task below a group, merged as lmms-eval merges them."""
    for entry in manager._get_config(group)["task"]:
        name, override = (entry, {}) if isinstance(entry, str) else (entry["task"], entry)
        assert name in manager.task_index, f"{group} names {name}, which lmms-eval does not have"
        if manager._name_is_group(name):
            yield from leaves(manager, name)
        else:
            yield name, {**manager._get_config(name), **override}


# The upstream module of VideoChatGPT, and others, need these at import.
@pytest.fixture
def hf_home(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))


def test_our_names_are_listed(manager: Any) -> None:
    ours = {"videomme_longva", "videomme_longva_subtitle", "mlvu_longva", "mlvu_longva_dev", "mlvu_longva_test"}
    assert ours | {"longva_paper"} <= set(manager.all_tasks)


TABLE_9 = {"ai2d", "chartqa", "docvqa_val", "infovqa_val", "realworldqa", "mmmu_val"}
TABLE_8 = {"nextqa_mc_test", "nextqa_oe_test", "activitynetqa", "video_dc499"}
TABLE_8 |= {"videochatgpt_gen", "videochatgpt_temporal", "videochatgpt_consistency"}


def test_tables_6_9_and_10_have_their_tasks(manager: Any, hf_home: None) -> None:
    assert {name for name, _ in leaves(manager, "longva_paper_image")} == TABLE_9
    table_10 = [name for name, _ in leaves(manager, "mlvu_longva_dev")]
    assert table_10 == ["mlvu_longva_dev_choice", "mlvu_longva_dev_generation"]
    parts = manager._get_config("longva_paper")["task"]
    assert parts == ["longva_paper_needles", "longva_paper_video", "longva_paper_image", "mlvu_longva_dev"]
    assert manager._get_config("longva_paper_needles")["task"] == ["vniah", "text_niah"]


def test_table_8_runs_upstreams_tasks(manager: Any, hf_home: None) -> None:
    pytest.importorskip("pandas")
    assert {name for name, _ in leaves(manager, "longva_paper_video")} == TABLE_8 | {"videomme_longva"}


@pytest.mark.parametrize("group", ["longva_paper_image", "longva_paper_video", "mlvu_longva"])
def test_no_task_asks_for_a_login(manager: Any, hf_home: None, group: str) -> None:
    for name, config in leaves(manager, group):
        assert not (config.get("dataset_kwargs") or {}).get("token"), f"{name} asks for a Hub login"


def test_hf_home_is_the_hub_librarys_own_unless_set(manager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HOME", "/somewhere")
    upstream.name_hf_home()
    assert os.environ["HF_HOME"] == "/somewhere"
    monkeypatch.delenv("HF_HOME")
    importlib.reload(upstream)
    manager._get_config("longva_paper_needles")
    assert "HF_HOME" not in os.environ  # whoever only imports the file, or runs other tasks, is left alone
    manager._get_config("longva_paper_video")
    assert os.environ["HF_HOME"] == constants.HF_HOME


def test_unjudged_answers_are_not_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    found = upstream.activitynetqa_process({"question": "q"}, ["blue"])
    assert set(found) == {"gpt_eval_score", "gpt_eval_accuracy"}
    assert found["gpt_eval_score"]["response"] == "blue" and "OPENAI_API_KEY" in found["gpt_eval_score"]["unscored"]
    assert upstream.activitynetqa_score([found["gpt_eval_score"]], None) == "not scored"


def test_with_a_key_upstream_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("lmms_eval.tasks.activitynetqa.utils")
    module.activitynetqa_process_results = lambda doc, results: {"gpt_eval_score": {"score": 4}}  # type: ignore[attr-defined]
    module.activitynetqa_aggregate_score = lambda results, args: results[0]["score"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    found = upstream.activitynetqa_process({}, ["blue"])
    assert upstream.activitynetqa_score([found["gpt_eval_score"]], None) == 4


@pytest.mark.parametrize("error", [NameError("lemmatize_sentence"), LookupError("Resource wordnet not found")])
def test_without_wordnet_wups_is_not_scored(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def upstreams(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
        raise KeyError("type") if "type" not in doc else error

    module = types.ModuleType("lmms_eval.tasks.nextqa.utils")
    module.nextqa_process_results = upstreams  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    found = upstream.nextqa_oe_process({"type": "CW"}, ["to play"])
    assert found["WUPS"]["response"] == "to play" and "lmms-eval[metrics]" in found["WUPS"]["unscored"]
    assert upstream.nextqa_oe_score([found["WUPS"]], None) == "not scored"
    with pytest.raises(KeyError):
        upstream.nextqa_oe_process({}, ["to play"])


def test_with_wordnet_wups_is_upstreams(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("lmms_eval.tasks.nextqa.utils")
    module.nextqa_process_results = lambda doc, results: {"WUPS": {"0": 0.5, "0.9": 0.25, "qtype": "CW"}}  # type: ignore[attr-defined]
    module.nextqa_aggregate_results = lambda results: 100 * results[0]["0"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    found = upstream.nextqa_oe_process({}, ["to play"])
    assert upstream.nextqa_oe_score([found["WUPS"]], None) == 50.0


def test_every_guarded_function_exists_upstream(hf_home: None) -> None:
    for task, functions in {
        "activitynetqa": ["process_results", "aggregate_score", "aggregate_accuracy"],
        "videochatgpt": [
            *(f"process_results_{part}" for part in ("generic", "temporal", "consistency")),
            "aggregate_score",
            "aggregate_consistency",
        ],
        "video_detail_description": ["process_results_generic", "aggregate_score"],
        "nextqa": ["process_results", "aggregate_results"],
    }.items():
        for function in functions:
            assert callable(upstream._upstream(task, f"{task}_{function}"))
