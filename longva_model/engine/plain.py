"""The reference way: one forward a request, no cache, no sharing. What the tree is tested against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from longva_model.engine.engine import OnFlops, OnResult, TreeEngine
from longva_model.engine.leaves import LeafResult
from vniah.requests import RequestTree, Target


class PlainEngine(TreeEngine):
    """Scores each request on its own. Generation leaves have a cache of their own, unshared."""

    @torch.inference_mode()
    def run(
        self,
        tree: RequestTree,
        media: Mapping[str, Any],
        on_result: OnResult | None = None,
        on_flops: OnFlops | None = None,
    ) -> list[LeafResult]:
        """As ``TreeEngine.run``: same arguments, results and errors."""
        self.embedder.media = dict(media)
        self._check_answers(tree)
        shape = self.shape()
        results: list[LeafResult] = []
        for index, request in enumerate(tree.requests):
            leaf = request.leaf
            if isinstance(leaf, Target):
                answer = self.backend.token_ids(leaf.text)
                embeds_TD = torch.cat(list(self.embedder.stream(request.segments, answer[:-1])))
                positions = torch.arange(embeds_TD.shape[0], device=embeds_TD.device)
                out = self.backend.decoder(inputs_embeds=embeds_TD[None], position_ids=positions[None], use_cache=False)
                hidden_LD = out.last_hidden_state[0, -len(answer) :]
                result = self._target(answer, hidden_LD, embeds_TD.shape[0] - (len(answer) - 1))
            else:
                prompt = sum(self.embedder.segment_tokens(segment) for segment in request.segments)
                self.cache = self.new_cache(prompt + leaf.max_new_tokens)
                result = self._generate(leaf, self._extend(request.segments, keep=1), request.segments)
            results.append(result)
            if on_result is not None:
                on_result(index, result)
            if on_flops is not None:
                on_flops(shape.forward_flops(result.prompt_tokens + len(result.answer_ids or result.predicted_ids)))
        self.cache = None
        return results
