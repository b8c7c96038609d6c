"""The teacher-forced text NIAH tasks (paper, Figure 7): one log-likelihood request a cell.

A Python task, so that each cell goes to the model as a ``TextPrompt``: segments, which a model may share
between cells and which are composed in its own tokens. Models that know no segments have
``text_niah_generate``.
"""

from __future__ import annotations

from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.task import ConfigurableTask

from vniah import scoring
from vniah.tasks.text_niah import books, metrics
from vniah.text import TextPrompt, TextSettings

SPLIT = "test"


class TextNiahTask(ConfigurableTask):
    """Text NIAH scored by teacher forcing. Grid and inputs come from ``TEXT_NIAH_*`` or the YAML's metadata."""

    def __init__(self, config: dict[str, Any] | None = None, **kwargs: Any) -> None:
        config = {key: value for key, value in (config or {}).items() if key != "class"}
        config.setdefault("output_type", "loglikelihood")
        config.setdefault("test_split", SPLIT)
        self.settings = TextSettings.read(config.get("metadata"))
        super().__init__(config=config, **kwargs)

    def _prepare_metric_and_aggregation(self) -> None:
        self._aggregation_list = metrics.aggregation(self.settings)
        self._metric_fn_list = dict.fromkeys(self._aggregation_list)
        self._metric_fn_kwargs: dict[str, dict[str, Any]] = {name: {} for name in self._aggregation_list}
        self._higher_is_better = {name: metrics.HIGHER_IS_BETTER[name] for name in self._aggregation_list}

    def download(self, dataset_kwargs: Any = None) -> None:
        """Open the haystack and build the rows of the grid; prompts are composed when a model asks for them."""
        import datasets

        self.book = books.open_book(self.settings)
        rows = datasets.Dataset.from_list(books.rows(self.book))
        self.dataset = self.dataset_no_image = datasets.DatasetDict({SPLIT: rows})
        self.config.metadata = {**(self.config.metadata or {}), **books.provenance(self.book)}

    def doc_to_text(self, doc: dict[str, Any]) -> str:
        return books.recipe(self.book, doc)

    def doc_to_target(self, doc: dict[str, Any]) -> str:
        return str(doc["answer"])

    def doc_to_visual(self, doc: dict[str, Any]) -> list[TextPrompt]:
        return [TextPrompt(self.book, books.cell_of(doc))]

    def build_all_requests(self, **kwargs: Any) -> None:
        # lmms-eval's request cache knows neither lengths nor haystack; a grid is built in milliseconds anyway.
        kwargs.update(cache_requests=False, rewrite_requests_cache=False)
        super().build_all_requests(**kwargs)

    def construct_requests(self, doc_id: int, ctx: str, **kwargs: Any) -> Instance:
        row = self.dataset[SPLIT][doc_id]
        arguments = (ctx, self.doc_to_target(row), self.doc_to_visual, doc_id, self.config.task, SPLIT)
        return Instance(request_type="loglikelihood", arguments=arguments, idx=0, **kwargs)

    def process_results(self, doc: dict[str, Any], results: list[Any], full_docs: Any = None) -> dict[str, Any]:
        _, correct = scoring.parse_loglikelihood(results)
        details = scoring.parse_details(results)
        return metrics.sample_metrics(self.book, doc, correct, details, teacher_forced=True)

    def aggregation(self) -> dict[str, Any]:
        return dict(self._aggregation_list)

    def higher_is_better(self) -> dict[str, bool]:
        return dict(self._higher_is_better)
