"""Models behind a server that speaks OpenAI's protocol: vLLM, SGLang, anybody's endpoint.

Knows neither torch nor transformers, and nothing of what a server computes: a cell becomes messages (``content.py``),
is asked (``endpoint.py``) in the order of the tree (``reuse.py``), and its answer is a score (``reply.py``).
"""
