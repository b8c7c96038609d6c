"""The teacher-forced needle tasks as lmms-eval has them: one log-likelihood request a cell, for both families.

A Python task and not a YAML of functions: chat models then pass too, and the target is the needle's own string.
Each cell's visual describes itself as segments, so that a model may share prefixes between cells.
"""

from __future__ import annotations

from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.task import ConfigurableTask

from vniah.runs import scoring
from vniah.runs.open import open_task
from vniah.runs.task import Answer, NeedleTask
from vniah.tasks.generated import logged_rows

SPLIT = "test"


class ForcedTask(ConfigurableTask):
    """A face of ``NeedleTask``. Grid and inputs come from the environment or the YAML's metadata."""

    needle_task: NeedleTask

    def __init__(self, config: dict[str, Any] | None = None, **kwargs: Any) -> None:
        config = {key: value for key, value in (config or {}).items() if key != "class"}
        config.setdefault("output_type", "loglikelihood")
        config.setdefault("test_split", SPLIT)
        config.setdefault("cluster_key", "cluster")
        self.needle_task = open_task(config["task"], "teacher-forced", config["metadata"], cached=True)
        super().__init__(config=config, **kwargs)

    def _prepare_metric_and_aggregation(self) -> None:
        metrics = self.needle_task.metrics
        self._metric_fn_list = dict.fromkeys(metrics)
        self._metric_fn_kwargs: dict[str, dict[str, Any]] = {name: {} for name in metrics}
        self._aggregation_list = {name: aggregate for name, (aggregate, _) in metrics.items()}
        self._higher_is_better = {name: higher for name, (_, higher) in metrics.items()}

    def download(self, dataset_kwargs: Any = None) -> None:
        """Build the rows of the grid; nothing is fetched beyond the needle set."""
        import datasets

        rows = datasets.Dataset.from_list(logged_rows(self.needle_task))
        self.dataset = self.dataset_no_image = datasets.DatasetDict({SPLIT: rows})
        self.config.metadata = {**(self.config.metadata or {}), **self.needle_task.provenance()}

    def doc_to_text(self, doc: dict[str, Any]) -> str:
        return self.needle_task.question(doc)

    def doc_to_target(self, doc: dict[str, Any]) -> str:
        return self.needle_task.target(doc)

    def doc_to_visual(self, doc: dict[str, Any]) -> list[Any]:
        return self.needle_task.visuals(doc)

    def doc_to_messages(self, doc: dict[str, Any], **_: Any) -> list[dict[str, Any]]:
        """For whoever asks in chats: our models give one prompt to this and to text and visuals."""
        return self.needle_task.messages(doc)

    def build_all_requests(self, **kwargs: Any) -> None:
        # A pickled request would carry the whole haystack, and lmms-eval's cache of requests knows neither
        # lengths nor haystack; a grid is built in milliseconds anyway.
        kwargs.update(cache_requests=False, rewrite_requests_cache=False)
        super().build_all_requests(**kwargs)

    def construct_requests(self, doc_id: int, ctx: str, **kwargs: Any) -> Instance:
        row = self.dataset[SPLIT][doc_id]
        arguments = (ctx, self.doc_to_target(row), self.doc_to_visual, doc_id, self.config.task, SPLIT)
        return Instance(request_type="loglikelihood", arguments=arguments, idx=0, **kwargs)

    def process_results(self, doc: dict[str, Any], results: list[Any], full_docs: Any = None) -> dict[str, Any]:
        _, correct = scoring.parse_loglikelihood(results)
        return self.needle_task.scores(doc, Answer.forced(correct, scoring.parse_details(results)))
