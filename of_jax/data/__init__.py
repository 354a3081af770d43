"""Corpora, tokenizers and batches. Enters: the config's `data` and `train` sections.
Leaves: memory-mapped token arrays, and batches that are a pure function of (seed, step).

Nothing here imports jax.
"""
