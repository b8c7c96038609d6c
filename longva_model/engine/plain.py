"""The reference way: one forward a request, no cache, no sharing. What the tree is tested against."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from longva_model.engine.engine import OnFlops, OnResult, TreeEngine
from longva_model.engine.leaves import LeafResult
from vniah.contract.requests import Request, RequestTree, Target


class PlainEngine(TreeEngine):
    """Scores each request on its own. Generation leaves have a cache of their own, unshared."""

    def planned_flops(self, tree: RequestTree, known: Collection[int] = ()) -> int:
        todo = (request for index, request in enumerate(tree.requests) if index not in known)
        return sum(self._request_flops(request) for request in todo)

    def _request_flops(self, request: Request) -> int:
        prompt, answer = self._prompt_tokens(request), self._leaf_room(request.leaf)
        return self.shape().forward_flops(prompt + max(0, answer - 1)) + self.shape().logits_flops(answer)

    def _prompt_tokens(self, request: Request) -> int:
        return sum(self.embedder.segment_tokens(segment) for segment in request.segments)

    def _walk(self, tree: RequestTree, known: Mapping[int, LeafResult], done: OnResult, tick: OnFlops | None) -> None:
        todo = [index for index in range(len(tree.requests)) if index not in known]
        for index in todo:
            request = tree.requests[index]
            done(index, self._score(request))
            if tick is not None:
                tick(self._request_flops(request))
        self.cache = None

    def _score(self, request: Request) -> LeafResult:
        leaf = request.leaf
        if isinstance(leaf, Target):
            answer = self.backend.token_ids(leaf.text)
            embeds_TD = torch.cat(list(self.embedder.stream(request.segments, answer[:-1])))
            self.check_reach(len(embeds_TD), in_parts=False)
            positions = torch.arange(embeds_TD.shape[0], device=embeds_TD.device)
            out = self.backend.decoder(inputs_embeds=embeds_TD[None], position_ids=positions[None], use_cache=False)
            hidden_LD = out.last_hidden_state[0, -len(answer) :]
            return self._target(answer, hidden_LD, embeds_TD.shape[0] - (len(answer) - 1), request.segments)
        self.cache = self.new_cache(self._prompt_tokens(request) + leaf.max_new_tokens)
        return self._generate(leaf, self._extend(request.segments, keep=1), request.segments)
