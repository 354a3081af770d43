"""Members of one program: each is its single run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from of_jax import run_directory
from of_jax.config import Config
from of_jax.train import train
from of_jax.train.checkpoint import Checkpoints
from of_jax.train.together import train_together

pytestmark = pytest.mark.xdist_group("together")

MakeConfig = Callable[..., Config]
SMALL: dict[str, Any] = {
    "model__width": 16, "model__depth": 1, "model__heads": 2, "train__steps": 4,
    "train__eval_every": 3, "train__checkpoint_every": 2, "data__eval_sequences": 8}


def quiet(line: str) -> None:
  del line


def records(workdir: Path) -> list[dict[str, Any]]:
  return list(run_directory.read_lines(workdir / "metrics.jsonl"))


def saved(workdir: Path, step: int) -> dict[str, np.ndarray]:
  with Checkpoints(workdir, reading=True) as checkpoints:
    leaves = jax.tree_util.tree_leaves_with_path(checkpoints.load_host(step))
  return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def test_members_are_their_single_runs(make_config: MakeConfig, tmp_path: Path) -> None:
  """Two devices of two members; one member's loss overflows. Bits are a test of the binary."""
  own: list[dict[str, Any]] = [
      {}, {"train__seed": 3, "optim__learning_rate": 3e-3, "optim__weight_decay": 0},
      {"model__beta": 0.5, "optim__eps": 1e-3, "model__init_std": 0.05},
      {"optim__learning_rate": 1e30, "model__beta": 0.25}]
  configs = {tmp_path / f"member{i}": make_config(
      **{**SMALL, "model__beta": 1, **fields}) for i, fields in enumerate(own)}
  train_together(configs, quiet)
  for i, (workdir, config) in enumerate(configs.items()):
    if i in (1, 2, 3):
      train(config, tmp_path / f"single{i}", quiet)
      ours, theirs = records(workdir), records(tmp_path / f"single{i}")
      assert [(r["step"], r["split"]) for r in ours] == [(r["step"], r["split"]) for r in theirs]
      print(i, [(a["loss"], b["loss"]) for a, b in zip(ours, theirs)])
