"""NaN and infinity planted at a site and a step: named, and survived bit for bit."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from of_jax.config import Config
from of_jax.errors import Preempted, UserError
from of_jax.models.functional import Network
from of_jax.models.probe import Context
from of_jax.storage import run_directory
from of_jax.storage.checkpoint import Checkpoints
from of_jax.sweep.trainer import train_together
from of_jax.train import train
from of_jax.train.distributed import Interruption
from of_jax.train.divergence import MOST_ROLLBACKS, MOST_SKIPPED
from of_jax.train.trainer import make_trainer

pytestmark = pytest.mark.xdist_group("divergence")

MakeConfig = Callable[..., Config]
MAGIC = 63
FIELDS: dict[str, Any] = {
    "model__width": 16, "model__depth": 2, "model__heads": 2, "train__steps": 8,
    "train__eval_every": 8, "train__checkpoint_every": 2, "train__checkpoint_log_base": 8,
    "data__eval_sequences": 8, "telemetry__level": "off"}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
  """Tokens without MAGIC, which a planted step brings."""
  path = tmp_path / "tokens.npy"
  np.save(path, np.random.default_rng(0).integers(1, MAGIC, 20_000).astype(np.uint16))
  return path


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
  """Plants `value` at a site of a layer (from 0) where the batch holds MAGIC, as those that
  `batches` numbers, from 0, are made to."""
  from of_jax.data.loader import Shuffled
  seen: list[jax.Array] = []
  stream, probe, train_batch = Network.stream, Context.probe, Shuffled.train_batch

  def place(site: str, layer: int, value: float, batches: tuple[int, ...]) -> None:
    def planted_stream(self: Network, parameters: Any, inputs: jax.Array, *rest: Any, **more: Any
                       ) -> Any:
      seen.append(jnp.any(inputs == MAGIC))
      try:
        return stream(self, parameters, inputs, *rest, **more)
      finally:
        seen.pop()

    def planted_probe(self: Context, name: str, x: jax.Array) -> jax.Array:
      if name == site and seen:
        here = seen[-1] & ((jnp.asarray(self.layer) == layer + 1) | (site == "final"))
        x = x.at[0, 0, 0].add(jnp.where(here, value, 0).astype(x.dtype))
      return probe(self, name, x)

    def planted_batch(self: Shuffled, step: int) -> Any:
      batch = train_batch(self, step)
      if step in batches:
        batch["inputs"] = np.full_like(batch["inputs"], MAGIC)
      return batch

    monkeypatch.setattr(Network, "stream", planted_stream)
    monkeypatch.setattr(Context, "probe", planted_probe)
    monkeypatch.setattr(Shuffled, "train_batch", planted_batch)
    make_trainer.cache_clear()

  yield place
  make_trainer.cache_clear()


def run(config: Config, workdir: Path) -> list[str]:
  lines: list[str] = []
  train(config, workdir, lines.append)
  assert not any("\n" in line for line in lines)
  return [line.replace(str(workdir), "RUN") for line in lines]


def killed_after(step: int, config: Config, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  """Runs up to a step that nothing is saved of, as kill -9 leaves it; ends in Preempted."""
  def stops_at(self: Interruption, at: int) -> bool:
    if at == step:
      raise Preempted("killed")
    return False

  with monkeypatch.context() as patched:
    patched.setattr(Interruption, "stops_at", stops_at)
    with pytest.raises(Preempted, match="killed"):
      train(config, workdir, lambda line: None)


def same_bits(ours: Path, theirs: Path, step: int) -> None:
  assert (ours / "metrics.jsonl").read_bytes() == (theirs / "metrics.jsonl").read_bytes()
  found = []
  for workdir in (ours, theirs):
    with Checkpoints(workdir, reading=True) as checkpoints:
      found.append(jax.tree.leaves(checkpoints.load_host(step)))
      found.append(checkpoints.kept(step))
  for mine, other in zip(found[0], found[2], strict=True):
    np.testing.assert_array_equal(mine, other)
  assert found[1] == found[3]


@pytest.mark.parametrize("site, layer, value, named", [
    ("mlp_hidden", 1, np.nan, "at mlp_hidden of layer 1 (1 NaN and 0 infinite of 8,192 numbers)"),
    pytest.param("attn_q", 0, np.inf, "at attn_q of layer 0 (0 NaN and 1 infinite of 2,048",
                 marks=pytest.mark.slow),
    pytest.param("final", 0, -np.inf, "at final (0 NaN and 1 infinite of 2,048",
                 marks=pytest.mark.slow)])
def test_a_run_that_stops_names_site_and_step(
    make_config: MakeConfig, corpus: Path, tmp_path: Path, plant: Callable[..., None], site: str,
    layer: int, value: float, named: str) -> None:
  """Without telemetry, between two lines of the record, by replay from the checkpoint before."""
  plant(site, layer, value, (4,))
  config = make_config(**FIELDS, data__corpus=f"tokens:{corpus}", train__log_every=3)
  lines = run(config, tmp_path / "run")
  told, = [line for line in lines if "first that is not finite" in line]
  assert told.startswith("RUN: step 5 is the first that is not finite, first " + named)
  assert told.endswith("; its batch is kept in divergence/step_5.npz")
  kept = np.load(tmp_path / "run" / "divergence" / "step_5.npz")
  assert (kept["inputs"] == MAGIC).all() and kept["inputs"].shape == (8, 16)
  assert any("the loss is not finite" in line for line in lines)


def test_what_is_skipped_is_named_and_survives_a_kill(
    make_config: MakeConfig, corpus: Path, tmp_path: Path, plant: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch) -> None:
  plant("resid_mid", 0, np.inf, (3, 4))
  config = make_config(**FIELDS, data__corpus=f"tokens:{corpus}", train__on_divergence="skip")
  lines = run(config, tmp_path / "whole")
  told = [line for line in lines if "is not finite" in line]
  assert told[0].startswith("RUN: step 4 is not finite, first at resid_mid of layer 0 (0 NaN and 1")
  assert told[0].endswith("divergence/step_4.npz; its update is left out")
  assert told[1].startswith("RUN: step 5 is not finite; its batch is kept") and len(told) == 2
  records = list(run_directory.read_lines(tmp_path / "whole" / "metrics.jsonl"))
  flags = [record["not_finite"] for record in records if record["split"] == "train"]
  assert flags == [0, 0, 0, 1, 1, 0, 0, 0]
  rates = [record["learning_rate"] for record in records if record["split"] == "train"]
  assert len(set(rates)) == 8  # The schedule goes on.
  assert np.isfinite(records[-1]["loss"])
  killed_after(5, config, tmp_path / "cut", monkeypatch)
  run(config, tmp_path / "cut")
  same_bits(tmp_path / "cut", tmp_path / "whole", 8)


@pytest.mark.slow
def test_a_run_goes_back_and_survives_a_kill(
    make_config: MakeConfig, corpus: Path, tmp_path: Path, plant: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch) -> None:
  """Step 4 is not finite, the checkpoint before it is of step 2: what follows reads batches that
  stand two further on, of which the one of step 6 is not finite either."""
  plant("mlp_out", 1, np.nan, (3, 7))
  config = make_config(**FIELDS, data__corpus=f"tokens:{corpus}", train__on_divergence="rollback")
  lines = run(config, tmp_path / "whole")
  told = [line for line in lines if "is not finite" in line]
  assert [line.split(", first")[0] for line in told] == [
      "RUN: step 4 is not finite", "RUN: step 6 is not finite"]
  assert "first at mlp_out of layer 1 (1 NaN" in told[1] and "time 2 of at most" in told[1]
  assert "step_6_batch_8.npz" in told[1]
  assert [line for line in lines if "resumes" in line] == [
      "RUN: resumes after step 2 of 8", "RUN: resumes after step 4 of 8"]
  records = list(run_directory.read_lines(tmp_path / "whole" / "metrics.jsonl"))
  assert all(np.isfinite(record["loss"]) for record in records) and len(records) == 9
  with Checkpoints(tmp_path / "whole", reading=True) as checkpoints:
    kept = checkpoints.kept(8)
    assert kept is not None
    assert kept["divergence"] == {"moved": 4, "skipped": 0, "rollbacks": 2}
  # Killed before the first time back, between the two, and after both.
  for step in (3, 5, 7):
    killed_after(step, config, tmp_path / str(step), monkeypatch)
    run(config, tmp_path / str(step))
    same_bits(tmp_path / str(step), tmp_path / "whole", 8)


@pytest.mark.parametrize("policy, most", [
    ("skip", MOST_SKIPPED), pytest.param("rollback", MOST_ROLLBACKS, marks=pytest.mark.slow)])
def test_what_never_gets_better_ends(
    make_config: MakeConfig, corpus: Path, tmp_path: Path, plant: Callable[..., None],
    policy: str, most: int) -> None:
  plant("resid_pre", 0, np.nan, tuple(range(2, 200)))
  config = make_config(**{**FIELDS, "train__steps": 40}, data__corpus=f"tokens:{corpus}",
                       train__on_divergence=policy)
  lines = run(config, tmp_path / "run")
  assert len([line for line in lines if "is not finite, first" in line]) >= 1
  assert any("stopped after step" in line for line in lines)
  assert (tmp_path / "run" / "DONE").exists()
  assert len(list((tmp_path / "run" / "divergence").iterdir())) == most + (policy == "rollback")


def test_a_member_skips_alone(make_config: MakeConfig, tmp_path: Path) -> None:
  """One whose learning rate is too large leaves every update out; the other learns, in the bits of
  its single run. None can go back alone."""
  calm = make_config(**FIELDS, train__on_divergence="skip")
  wild = make_config(**FIELDS, train__on_divergence="skip", optim__learning_rate=1e30)
  lines: list[str] = []
  train_together({tmp_path / "calm": calm, tmp_path / "wild": wild}, lines.append)
  assert any(f"{tmp_path / 'wild'}: step 2 is not finite" in line for line in lines)
  assert not any(f"{tmp_path / 'calm'}: step" in line for line in lines)
  with pytest.raises(UserError, match="on_divergence=rollback: one member cannot go back"):
    train_together({tmp_path / "b": make_config(**FIELDS, train__on_divergence="rollback")})
  assert not os.path.exists(tmp_path / "b")
