"""Reads run directories: runs, claims and their verdicts, figures, the page; restores checkpoints
and measures them again. Never the trainer.
"""

from typing import Any


def __getattr__(name: str) -> Any:
  # On first use, since it brings jax, which reading numbers does without.
  if name == "restore":
    from of_jax.analysis.replay import restore
    return restore
  raise AttributeError(f"module 'of_jax.analysis' has no attribute {name!r}")
