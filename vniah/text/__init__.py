"""Text NIAH: a 7-digit number hidden in a long text, with distractors (paper section 9, reference section 4).

Haystacks, puzzles, placement and scores. Knows nothing about models; a model's tokenizer is handed in.
"""
