"""Members of one program: each is its single run."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from of_jax.config import Config
from of_jax.errors import Preempted, UserError
from of_jax.storage import run_directory
from of_jax.sweep import members
from of_jax.sweep.trainer import Sweep, train_together
from of_jax.train import train
from of_jax.train.distributed import Interruption
from of_jax.train.startup import initial_state
from tests.train.test_processes import saved

pytestmark = pytest.mark.xdist_group("together")

ROOT = Path(__file__).parents[2]
MakeConfig = Callable[..., Config]
SMALL: dict[str, Any] = {
    "model__width": 16, "model__depth": 1, "model__heads": 2, "train__steps": 5,
    "train__eval_every": 4, "train__checkpoint_every": 5, "train__checkpoint_log_base": 5,
    "data__eval_sequences": 8, "telemetry__sites": "final", "telemetry__metrics": "kurtosis,mmr"}


def quiet(line: str) -> None:
  del line


def records(workdir: Path) -> list[dict[str, Any]]:
  return list(run_directory.read_lines(workdir / "metrics.jsonl"))


def same_run(ours: Path, theirs: Path, step: int) -> None:
  """The same bits of the state and of all metrics; the optimiser's of level full to 1e-6."""
  our_records, their_records = records(ours), records(theirs)
  for our, their in zip(our_records, their_records):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
                 our.pop("optimizer", {}), their.pop("optimizer", {}))
  assert our_records == their_records
  left, right = saved(ours, step), saved(theirs, step)
  assert left.keys() == right.keys() and len(left) > 20
  for name, leaf in left.items():
    np.testing.assert_array_equal(leaf, right[name], err_msg=name)


def test_members_are_their_single_runs(make_config: MakeConfig, tmp_path: Path,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
  """Three members on three devices: told to stop, one is resumed alone and ends in the bits of its
  single run; another diverges and ends alone."""
  own: list[dict[str, Any]] = [
      {"train__seed": 3, "optim__learning_rate": 3e-3, "optim__weight_decay": 0},
      {"model__beta": 0.5, "optim__eps": 1e-3, "model__init_std": 0.05},
      {"optim__learning_rate": 1e30}]
  first, second, third = (tmp_path / f"member{i}" for i in range(3))
  configs = [make_config(**{**SMALL, "model__beta": 1, **fields}) for fields in own]
  lines: list[str] = []
  with monkeypatch.context() as told:
    told.setattr(Interruption, "stops_at", lambda self, step: step == 3)
    with pytest.raises(Preempted, match="saved step 3 of 5"):
      train_together(dict(zip((first, second, third), configs)), lines.append)
  assert f"{third}: stopped after step 3: the loss is not finite" in lines
  assert [(r["step"], r["split"], r["loss"] is None) for r in records(third)] == [
      (1, "train", False), (2, "train", True), (3, "train", True), (3, "eval", True)]
  assert (third / "DONE").exists() and not (first / "DONE").exists()
  for workdir in (second, tmp_path / "single"):
    train(configs[1], workdir, quiet)
  same_run(second, tmp_path / "single", 5)
  environment = run_directory.read_json(second / "env.json")
  assert environment["together"]["members"] == [str(first), str(second), str(third)]


def test_what_members_may_differ_in(make_config: MakeConfig, tmp_path: Path) -> None:
  """Names in groups; and one line where they are no members of one program."""
  fields: list[dict[str, Any]] = [
      {}, {"optim__b2": 0.95}, {"train__seed": 1, "optim__eps": 1e-4},
      {"optim__learning_rate": 1e-2, "model__init_std": 0.1}, {"mesh__data": 2}, {"model__beta": 1},
      {"model__beta": 0.5}, {"train__wandb_project": "mine"}]
  configs = {str(i): make_config(**own) for i, own in enumerate(fields)}
  assert members.groups(configs, 8) == [["0", "2", "3"], ["1"], ["4"], ["5", "6"], ["7"]]
  assert members.groups(configs, 2) == [
      ["0", "2"], ["1"], ["3"], ["4"], ["5", "6"], ["7"]]
  assert members.groups(configs, 1) == [[name] for name in configs]
  for other, message in (("1", r"b and .*a differ in optim.b2, which members"),
                         ("4", r"b: config.mesh asks for several devices; a member has one"),
                         ("5", r"b and .*a differ in model.beta, model.beta_attention")):
    with pytest.raises(UserError, match=message):
      train_together({tmp_path / "a": configs["0"], tmp_path / "b": configs[other]}, quiet)
  assert not (tmp_path / "a").exists()


# Every field in which members may differ. Those that differ in seed or init alone share a program.
OWN = [("optim.learning_rate=1e-2", "train.seed=0"), ("optim.eps=1e-3", "train.seed=1"),
       ("optim.weight_decay=0", "train.seed=2"), ("model.beta=0.5", "train.seed=3")]


# Trains its members together and one by one, as a user does: with every optimisation.
SIXTEEN = """
import sys
from pathlib import Path
from of_jax import presets
from of_jax.config import apply_overrides
from of_jax.train import train
from of_jax.sweep.trainer import train_together
root, *settings = sys.argv[1:]
own = [setting.split(";") for setting in settings[:4]]
runs = {}
for i, fields in enumerate(own):
  for seed in range(4):
    values = [text.split("=") for text in (*settings[4:], *fields, f"train.seed={10 * i + seed}")]
    if i == 0 and seed == 3:
      values.append(("model.init_std", "0.03"))
    runs[f"{i}_{seed}"] = apply_overrides(presets.preset("tiny"), values)
assert len(runs) == 16
train_together({Path(root) / "members" / name: config for name, config in runs.items()})
for name, config in runs.items():
  train(config, Path(root) / "single" / name)
"""


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_sixteen_members_are_their_single_runs(devices: int, token_file: Path,
                                                       tmp_path: Path) -> None:
  """The tiny model; sixteen members on one device, and two on each of eight."""
  environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
  subprocess.run(
      [sys.executable, "-c", SIXTEEN, str(tmp_path), *(";".join(own) for own in OWN),
       f"data.corpus=tokens:{token_file}", "data.vocab_size=64", "data.eval_sequences=16",
       "mesh.data=1", "model.beta=1", "train.steps=12", "train.batch_size=4",
       "train.sequence_length=32", "train.eval_every=6", "train.checkpoint_every=100",
       "train.checkpoint_log_base=12", "train.tensorboard=false"], check=True, cwd=ROOT,
      env={**environment, "JAX_NUM_CPU_DEVICES": str(devices)}, timeout=3000)
  names = sorted(path.name for path in (tmp_path / "single").iterdir())
  assert len(names) == 16
  for name in names:
    same_run(tmp_path / "members" / name, tmp_path / "single" / name, 12)


@pytest.mark.slow
def test_members_are_resumed_together(make_config: MakeConfig, tmp_path: Path,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
  """Those that have the same checkpoint, and apart from them one that was killed before its save;
  all of the telemetry, with what is measured apart from the step."""
  fields = {**SMALL, "telemetry__level": "full", "telemetry__sites": None,
            "telemetry__metrics": None, "telemetry__cadences": "attention=2,moment_updates=3"}
  runs = {tmp_path / str(seed): make_config(**{
      **{name: value for name, value in fields.items() if value is not None},
      "train__seed": seed}) for seed in range(3)}
  with monkeypatch.context() as told:
    told.setattr(Interruption, "stops_at", lambda self, step: step == 3)
    with pytest.raises(Preempted):
      train_together(runs, quiet)
  shutil.rmtree(tmp_path / "1" / "checkpoints" / "3")
  lines: list[str] = []
  train_together(runs, lines.append)
  assert "2 runs: resumes after step 3 of 5" in lines and "1: resumes after step 1 of 5" in lines
  for seed, config in enumerate(runs.values()):
    train(config, tmp_path / f"single{seed}", quiet)
    same_run(tmp_path / str(seed), tmp_path / f"single{seed}", 5)


@pytest.mark.slow
def test_members_at_once_agree_to_rounding(make_config: MakeConfig) -> None:
  """What accelerators run, against the members in turn: losses to 1e-5, telemetry to 1e-4."""
  configs = [make_config(**{**SMALL, "train__seed": seed, "model__beta": 1 / (1 + seed),
                            "optim__learning_rate": 1e-3}) for seed in range(16)]
  history = []
  for at_once in (False, True):
    sweep = Sweep(configs, at_once=at_once)
    state = sweep.stacked([initial_state(config, sweep.trainer_of(config), None)
                           for config in configs])
    rng = np.random.default_rng(0)
    metrics: list[Any] = []
    for _ in range(5):
      tokens = rng.integers(0, 64, (16, 8, 17)).astype(np.int32)
      batch = sweep.stacked([{"inputs": part[:, :-1], "targets": part[:, 1:],
                              "weights": np.ones((8, 16), np.float32)} for part in tokens])
      state, found = sweep.trainer.step_measured(state, batch, sweep.keys())
      metrics.append(jax.device_get(found))
    history.append(metrics)
  in_turn, at_once_ = history
  for ours, theirs in zip(at_once_, in_turn):
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
                 ours["telemetry"], theirs["telemetry"])
