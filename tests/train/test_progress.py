"""What is printed while a run goes on: speed, and MFU where the devices' peak is known."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from of_jax.config import Config
from of_jax.storage import run_directory
from of_jax.train.outputs import RunOutputs
from of_jax.train.progress import TrainingProgress
from of_jax.train.writers import RunLog


@pytest.mark.parametrize("peak, members, shown", [
    # A step of 4 x 8 tokens, 1,000 flops each, takes 2 s: 16,000 flops a second and member.
    (64_000.0, 1, "run: step 3/3  loss 2.5  16 tokens/s  MFU 25.0%  0 s left"),
    (64_000.0, 2, "run: step 3/3  loss 2.5  32 tokens/s  MFU 50.0%  0 s left"),
    (None, 2, "run: step 3/3  loss 2.5  32 tokens/s  0 s left")])
def test_the_line_of_a_step(
    make_config: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, peak: float | None, members: int, shown: str) -> None:
  config = make_config(train__batch_size=4, train__sequence_length=8, train__tensorboard=False)
  now = [0.0]
  monkeypatch.setattr(time, "perf_counter", lambda: now[0])
  workdirs = [tmp_path / str(i) for i in range(members)]
  for workdir in workdirs:
    workdir.mkdir()

  def split(tree: Any) -> list[Any]:
    return [tree] * members

  outputs = RunOutputs(workdirs, [RunLog(workdir, config, 2, peak, 1000) for workdir in workdirs],
                      [], [False] * members, split, print)
  with outputs, TrainingProgress("run", 2, 3) as progress:
    now[0] = 2.0
    progress.update(*outputs.train(3, {"loss": np.float32(2.5)}))
  assert capsys.readouterr().out.splitlines()[-1] == shown
  timing = list(run_directory.read_lines(workdirs[-1] / run_directory.TIMING))
  assert timing == [{"step": 3, "seconds": 2.0, "tokens_per_second": 16.0,
                     "mfu": None if peak is None else 0.25}]
