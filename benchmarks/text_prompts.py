"""Preparing text NIAH up to 512K tokens: ``python benchmarks/text_prompts.py [--haystack DIR] [--tokenizer DIR]``.

Measured: the paper's whole grid (16 lengths to 512K tokens, 11 depths, 5 samples, 5 distractors; 896 prompts with
controls), opened, tokenised, composed and merged into a request tree; then lowered to atoms and merged as the engine
merges them. Beside it the plain way in the same run: prompts of text, each tokenised whole, timed on the longest few
and reckoned for the grid by its tokens. The claim: under 60 seconds and 2 GB of memory. The tokenizer is a byte-level
BPE trained here unless one is named.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from harness import options, peak_bytes, spent

from vniah.contract.requests import Request, RequestTree
from vniah.text import prose
from vniah.text.haystack import open_text_haystack
from vniah.text.measure import MeasuredHaystack
from vniah.text.settings import TextSettings
from vniah.text.task import TextTask

PLAIN_PROMPTS = 2


def trained_tokenizer() -> Callable[[str], list[int]]:
    """A byte-level BPE of 8,000 entries, trained on built-in prose."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=8000, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(itertools.islice(prose.sentences(1), 5000), trainer)
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)


def import_heavy() -> None:
    """What lowering imports, so that it is not measured."""
    import longva_model.backends.backend  # noqa: F401


def lowered(requests: list[Request], source: MeasuredHaystack, encode: Callable[[str], list[int]]) -> int:
    """Nodes of the tree that the engine makes of the prompts."""
    from longva_model.backends.backend import Backend
    from longva_model.engine.atoms import AtomTable, PrefixTree
    from longva_model.prompts.prompting import Prompt

    class TextModel(Backend):
        name = "text"

        def token_ids(self, text: str) -> list[int]:
            return encode(text)

    backend, table = TextModel(), AtomTable()
    media = {source.fingerprint: source}
    tree = PrefixTree([backend.lower(Prompt(request=one, media=media), table) for one in requests])
    return sum(1 for _ in tree.walk())


def main(given: Any) -> None:
    if given.tokenizer:
        from vniah.text.task import named_tokenizer

        encode: Callable[[str], list[int]] = named_tokenizer(given.tokenizer)
    else:
        encode = trained_tokenizer()
    settings = TextSettings(lengths=given.lengths, num_distractors=5)

    def prepare() -> tuple[MeasuredHaystack, TextTask, list[Request], int]:
        source = MeasuredHaystack(open_text_haystack(given.haystack), encode)
        task = TextTask("text_niah_5", "teacher-forced", settings, source)
        requests = task.requests()
        return source, task, requests, sum(1 for _ in RequestTree(requests).walk())

    (source, task, requests, nodes), took = spent(prepare)
    memory = peak_bytes() / 1e9
    import_heavy()
    batch, lowering = spent(lambda: lowered(requests, source, encode), memory=True)
    total = sum(task.compose(cell).num_tokens for cell in task.cells)
    longest = [task.compose(cell) for cell in task.cells[-PLAIN_PROMPTS:]]
    tokens, plain = spent(lambda: sum(len(encode(composed.text())) for composed in longest))
    seconds, whole = plain.wall * total / tokens, source.num_tokens
    print(f"haystack {given.haystack}: {'endless' if whole is None else f'{whole:,} tokens, read again when short'}")
    print(f"{len(requests):,} prompts of {total:,} tokens in a tree of {nodes:,} nodes")
    print(f"prepared in {took.wall:.1f} s, peak memory {memory:.2f} GB")
    print(f"as atoms, {batch:,} nodes, in {lowering.wall:.1f} s and {lowering.peak_bytes / 1e9:+.2f} GB")
    print(f"each prompt tokenised whole: about {seconds:.0f} s, by {tokens:,} tokens: ", end="")
    print(f"{seconds / took.wall:.0f} times longer")


if __name__ == "__main__":
    main(options(__doc__, haystack="builtin", tokenizer="", lengths="32000-512000:32000"))
