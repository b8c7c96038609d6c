"""The teacher-forced V-NIAH task (paper section 4): one log-likelihood request a cell.

A Python task, not a YAML of functions: chat models then pass too, and the target is the needle's own
string. Each cell's video goes to the model as a ``SplicedVideo``, which describes itself as segments,
so that a model may share prefixes between cells and never sees an mp4.
"""

from __future__ import annotations

from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.task import ConfigurableTask

from vniah import scoring
from vniah.settings import Settings
from vniah.tasks.vniah import metrics
from vniah.tasks.vniah.cells import open_cells

SPLIT = "test"


class VniahTask(ConfigurableTask):
    """V-NIAH scored by teacher forcing. Grid and inputs come from ``VNIAH_*`` or the YAML's metadata."""

    def __init__(self, config: dict[str, Any] | None = None, **kwargs: Any) -> None:
        config = {key: value for key, value in (config or {}).items() if key != "class"}
        config.setdefault("output_type", "loglikelihood")
        config.setdefault("test_split", SPLIT)
        super().__init__(config=config, **kwargs)

    def _prepare_metric_and_aggregation(self) -> None:
        self._metric_fn_list = dict.fromkeys(metrics.AGGREGATION)
        self._metric_fn_kwargs: dict[str, dict[str, Any]] = {name: {} for name in metrics.AGGREGATION}
        self._aggregation_list = dict(metrics.AGGREGATION)
        self._higher_is_better = dict(metrics.HIGHER_IS_BETTER)

    def download(self, dataset_kwargs: Any = None) -> None:
        """Build the rows of the grid; nothing is fetched beyond the needle set."""
        import datasets

        metadata = dict(self.config.metadata or {})
        self.book = open_cells(Settings.read(metadata))
        rows = datasets.Dataset.from_list(self.book.rows())
        self.dataset = self.dataset_no_image = datasets.DatasetDict({SPLIT: rows})
        self.config.metadata = {**metadata, **self.book.provenance()}

    def doc_to_text(self, doc: dict[str, Any]) -> str:
        return str(doc["question"])

    def doc_to_target(self, doc: dict[str, Any]) -> str:
        return str(doc["answer"])

    def doc_to_visual(self, doc: dict[str, Any]) -> list[Any]:
        return [self.book.video(doc)]

    def build_all_requests(self, **kwargs: Any) -> None:
        # A pickled request would carry the whole haystack; a grid is built in milliseconds anyway.
        kwargs.update(cache_requests=False, rewrite_requests_cache=False)
        super().build_all_requests(**kwargs)

    def construct_requests(self, doc_id: int, ctx: str, **kwargs: Any) -> Instance:
        row = self.dataset[SPLIT][doc_id]
        arguments = (ctx, self.doc_to_target(row), self.doc_to_visual, doc_id, self.config.task, SPLIT)
        return Instance(request_type="loglikelihood", arguments=arguments, idx=0, **kwargs)

    def process_results(self, doc: dict[str, Any], results: list[Any], full_docs: Any = None) -> dict[str, Any]:
        _, correct = scoring.parse_loglikelihood(results)
        details = scoring.parse_details(results)
        return metrics.sample_metrics(doc, correct, details)

    def aggregation(self) -> dict[str, Any]:
        return dict(metrics.AGGREGATION)

    def higher_is_better(self) -> dict[str, bool]:
        return dict(metrics.HIGHER_IS_BETTER)
