"""Compiles the train step for devices that are not here, for tests that read the program."""

from typing import Any

import pytest

from of_jax.config import Config
from of_jax.train import ahead_of_time


def compiled(config: Config, name: str) -> tuple[str, dict[str, Any]]:
  """Compiles for a topology, as `v5e:2x2`; returns the program's text and what is said of it."""
  texts: list[str] = []
  judge = ahead_of_time._judge

  def keep(text: str, *rest: Any) -> dict[str, Any]:
    texts.append(text)
    return judge(text, *rest)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(ahead_of_time, "_judge", keep)
    report = ahead_of_time.compile_step(config, name)
  return texts[0], report
