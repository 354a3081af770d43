"""The perplexity when quantised, while a model trains: that of the checkpoint of the same step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from of_jax.analysis import quantisation, replay
from of_jax.config import Config
from of_jax.errors import UserError
from of_jax.quantise.scheme import Scheme
from of_jax.storage import run_directory
from of_jax.sweep.trainer import train_together
from of_jax.train import train
from of_jax.train.sharding import make_mesh
from of_jax.train.trainer import make_trainer

MakeConfig = Callable[..., Config]
FIELDS: dict[str, Any] = {"model__depth": 1, "train__steps": 4, "train__checkpoint_every": 4,
                          "telemetry__quantised_perplexity_every": 2}


def found(run: Path) -> dict[int, tuple[float, float]]:
  """Step -> both metrics."""
  lines = run_directory.read_lines(run / "metrics.jsonl")
  finals = {line["step"]: line["telemetry"]["final"] for line in lines if line["split"] == "train"}
  return {step: (final["quantised_perplexity"][0], final["quantised_loss_increase"][0])
          for step, final in finals.items() if "quantised_perplexity" in final}


@pytest.mark.slow
def test_it_is_what_analysis_finds_of_the_checkpoint(make_config: MakeConfig, tmp_path: Path
                                                     ) -> None:
  lines: list[str] = []
  # Large matrices, so that rounding them is seen; and a cap, which both must know of.
  train(make_config(**FIELDS, model__init_std=0.3, model__logit_cap=2.0), tmp_path, lines.append)
  measured = found(tmp_path)
  assert list(measured) == [1, 2, 4]
  assert any(line.startswith("telemetry quantised: measured 3 times") for line in lines)
  scheme = Scheme(weight_range="mse", activation_granularity="token", activation_range="min_max")
  for step in (1, 4):
    model = replay.restore(tmp_path, step)
    first = model.batches(count=1)
    after = quantisation.loss(model, first, scheme, quantisation.calibrate(model, [], scheme))
    plain = quantisation.plain_loss(model, first)[0]
    assert abs(after - plain) > 1e-4
    np.testing.assert_allclose(measured[step], (np.exp(after), after - plain), rtol=1e-5,
                               atol=2e-6)


def test_the_train_step_is_the_same_program(make_config: MakeConfig) -> None:
  texts = []
  for every in (0, 2):
    config = make_config(**{**FIELDS, "telemetry__quantised_perplexity_every": every})
    mesh = make_mesh(config)
    with jax.set_mesh(mesh):
      trainer = make_trainer(config, mesh)
      state = jax.eval_shape(trainer.init, jax.random.key(0))
      tokens = jax.ShapeDtypeStruct((8, 16), np.int32)
      batch = {"inputs": tokens, "targets": tokens,
               "weights": jax.ShapeDtypeStruct((8, 16), np.float32)}
      texts.append(trainer.step_measured.lower(state, batch, jax.random.key(0)).as_text())
  assert texts[0] == texts[1]


@pytest.mark.slow
def test_on_a_mesh_and_of_members(make_config: MakeConfig, tmp_path: Path) -> None:
  one = make_config(**FIELDS, model__init_std=0.3, optim__learning_rate=1e-4)
  train(one, tmp_path / "one", lambda line: None)
  train(make_config(**FIELDS, model__init_std=0.3, optim__learning_rate=1e-4, mesh__data=2,
                    mesh__fsdp=2, mesh__tensor=2), tmp_path / "eight", lambda line: None)
  train_together({tmp_path / f"member{seed}": make_config(
      **FIELDS, model__init_std=0.3, optim__learning_rate=1e-4, train__seed=seed)
      for seed in (0, 1)}, lambda line: None)
  expected = found(tmp_path / "one")
  for other in ("eight", "member0"):
    for step, values in found(tmp_path / other).items():
      # A number next to a boundary may round the other way.
      np.testing.assert_allclose(values, expected[step], rtol=1e-3, atol=1e-3, err_msg=other)
  assert abs(found(tmp_path / "member1")[1][0] - expected[1][0]) > 1e-2


@pytest.mark.parametrize("fields, message", (
    ({"telemetry__level": "off"}, "quantised_perplexity_every=2: nothing is measured"),
    ({"telemetry__quantised_perplexity_every": -1}, "must not be negative"),
    ({"telemetry__quantised_perplexity_every": 0, "telemetry__metrics": "quantised_perplexity"},
     "quantised_perplexity is measured by telemetry.quantised_perplexity_every")))
def test_a_mistake_is_one_line(fields: dict[str, Any], message: str, make_config: MakeConfig
                               ) -> None:
  with pytest.raises(UserError, match=message):
    make_config(**{**FIELDS, **fields})
