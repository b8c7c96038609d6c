"""lmms-eval's own tasks within `longva_paper`: what must be mended for them to run without a login, judge or extra.

- Their YAML asks for a Hub login (`token: True`), which fails for a user without one although the data sets
  are public. The group's YAML gives `dataset_kwargs` without it.
- Some read HF_HOME without a default when they are imported, so it is set to the Hub library's own.
- Table 8's judged tasks (ActivityNet-QA, VideoChatGPT, Video-DD) count 0 when no OpenAI key is set. Here
  they are "not scored" instead. With OPENAI_API_KEY they are scored by lmms-eval as ever.
- NExT-QA's WUPS needs WordNet through packages that lmms-eval does not bring by itself. Without them it raises
  once every answer of the run is there, and the whole run is lost; here that one score is "not scored".
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_log = logging.getLogger(__name__)
NOT_SCORED = "not scored"
REASON = "no judge: set OPENAI_API_KEY (and OPENAI_API_URL) for lmms-eval's own judged tasks"
NO_WORDNET = (
    "no WordNet: pip install 'lmms-eval[metrics]', and "
    "python -m nltk.downloader wordnet punkt_tab averaged_perceptron_tagger_eng"
)


def name_hf_home() -> None:
    """Set HF_HOME where it is not; called when lmms-eval reads a group of these tasks, before it imports theirs."""
    from huggingface_hub import constants

    os.environ.setdefault("HF_HOME", constants.HF_HOME)


def _upstream(task: str, function: str) -> Callable[..., Any]:
    module = importlib.import_module(f"lmms_eval.tasks.{task}.utils")
    found: Callable[..., Any] = getattr(module, function)
    return found


@functools.cache
def _say_once(task: str, reason: str) -> None:
    """Once a reason, not once a metric."""
    _log.warning("%s: %s (%s)", task, NOT_SCORED, reason)


def _not_scored(metrics: Sequence[str], reason: str, results: Sequence[str]) -> dict[str, Any]:
    return {metric: {"unscored": reason, "response": results[0] if results else ""} for metric in metrics}


def guarded_process(task: str, function: str, *metrics: str) -> Callable[..., dict[str, Any]]:
    """Upstream's ``process_results`` where there is a judge, else every metric unscored."""

    def process_results(doc: Mapping[str, Any], results: list[str], **kwargs: Any) -> dict[str, Any]:
        if os.environ.get("OPENAI_API_KEY"):
            return dict(_upstream(task, function)(doc, results, **kwargs))
        return _not_scored(metrics, REASON, results)

    return process_results


def guarded_aggregate(task: str, function: str) -> Callable[..., Any]:
    """Upstream's aggregation, or "not scored" when answers have no score."""

    def aggregate(items: list[Mapping[str, Any]], args: Any) -> Any:
        reason = next((item["unscored"] for item in items if "unscored" in item), None)
        if reason is not None:
            _say_once(task, reason)
            return NOT_SCORED
        upstream = _upstream(task, function)
        return upstream(items, args) if "args" in inspect.signature(upstream).parameters else upstream(items)

    return aggregate


def nextqa_oe_process(doc: Mapping[str, Any], results: list[str]) -> dict[str, Any]:
    """Upstream's WUPS of one answer; unscored where a package or the data of NLTK is not there."""
    try:
        return dict(_upstream("nextqa", "nextqa_process_results")(doc, results))
    except (NameError, ImportError, LookupError) as error:
        # NLTK says LookupError of data that it lacks. A column that is missing is another matter.
        if isinstance(error, (KeyError, IndexError)):
            raise
        return _not_scored(["WUPS"], NO_WORDNET, results)


nextqa_oe_score = guarded_aggregate("nextqa", "nextqa_aggregate_results")

activitynetqa_process = guarded_process(
    "activitynetqa", "activitynetqa_process_results", "gpt_eval_score", "gpt_eval_accuracy"
)
activitynetqa_score = guarded_aggregate("activitynetqa", "activitynetqa_aggregate_score")
activitynetqa_accuracy = guarded_aggregate("activitynetqa", "activitynetqa_aggregate_accuracy")

_DD = "video_detail_description"
video_dd_process = guarded_process(_DD, f"{_DD}_process_results_generic", "gpt_eval_score")
video_dd_score = guarded_aggregate(_DD, f"{_DD}_aggregate_score")

_GENERIC = ("gpt_eval_score_correctness", "gpt_eval_score_detailed_orientation", "gpt_eval_score_context")
_GPT = functools.partial(guarded_process, "videochatgpt")
videochatgpt_generic_process = _GPT("videochatgpt_process_results_generic", *_GENERIC)
videochatgpt_temporal_process = _GPT("videochatgpt_process_results_temporal", "gpt_eval_score_temporal")
videochatgpt_consistency_process = _GPT("videochatgpt_process_results_consistency", "gpt_eval_score_consistency")
videochatgpt_score = guarded_aggregate("videochatgpt", "videochatgpt_aggregate_score")
videochatgpt_consistency = guarded_aggregate("videochatgpt", "videochatgpt_aggregate_consistency")
