"""AdaFactor in the eigenbasis of Shampoo's factors (He et al. 2024, 2405.19279, Sec. 5)."""

from typing import Any

import jax
import optax

from of_jax.config import OptimConfig
from of_jax.optim import rotated
from of_jax.optim.layout import Layout
from of_jax.optim.preconditioners import vocabulary_axes

FIELDS = {"b1": 0.95, "b2": 0.95, "eps": 1e-8, "shampoo_beta": None,
          "precondition_frequency": 10, "max_precond_dim": 10_000}


def scale_by_rotated_adafactor(
    b1: float | jax.Array = 0.95, b2: float | jax.Array = 0.95,
    shampoo_beta: float | jax.Array | None = None, eps: float | jax.Array = 1e-8,
    precondition_frequency: int | jax.Array = 10, max_precond_dim: int = 10_000, *,
    views: Any | None = None, fixed_axes: Any | None = None) -> optax.GradientTransformation:
  """Direction of rotated AdaFactor, without the learning rate; see of_jax.optim.rotated."""
  return rotated.scale_by_rotated_adam(
      b1, b2, shampoo_beta, eps, precondition_frequency, max_precond_dim,
      rotated.RankOneMoment(), views=views, fixed_axes=fixed_axes)


def rotated_adafactor(
    learning_rate: optax.ScalarOrSchedule, b1: float | jax.Array = 0.95,
    b2: float | jax.Array = 0.95, shampoo_beta: float | jax.Array | None = None,
    eps: float | jax.Array = 1e-8, weight_decay: float | jax.Array = 0.01,
    precondition_frequency: int | jax.Array = 10, max_precond_dim: int = 10_000, *,
    mask: Any | None = None, views: Any | None = None, fixed_axes: Any | None = None,
    multipliers: Any | None = None
) -> optax.GradientTransformation:
  """Rotated AdaFactor: of_jax.optim.soap with the second moment V = r c^T / mean(r).

  r and c are moving averages, of decay b2, of the means of G'^2 over columns and rows. As in He et
  al., what else AdaFactor has is left out: the step does not grow with the parameter's norm, the
  update's RMS is not clipped, the decay does not depend on the step. Arguments as in `soap`,
  `max_precond_dim` static under `optax.inject_hyperparams` too.
  """
  return optax.chain(
      scale_by_rotated_adafactor(b1, b2, shampoo_beta, eps, precondition_frequency,
                                 max_precond_dim, views=views, fixed_axes=fixed_axes),
      rotated.step_then_decay(learning_rate, weight_decay, mask, multipliers))


def from_config(optim: OptimConfig, learning_rate: optax.ScalarOrSchedule,
                layout: Layout) -> optax.GradientTransformation:
  """Builds it for the matrices that the parameters' axes name; the vocabulary is not rotated."""
  assert (optim.b1 is not None and optim.b2 is not None and optim.eps is not None
          and optim.precondition_frequency is not None
          and optim.max_precond_dim is not None), "resolve the config first"
  return rotated_adafactor(
      learning_rate, optim.b1, optim.b2, optim.shampoo_beta, optim.eps, layout.weight_decay,
      optim.precondition_frequency, optim.max_precond_dim, mask=layout.decays, views=layout.views,
      fixed_axes=vocabulary_axes(layout.axes), multipliers=layout.multipliers)
