"""SOAP (Vyas et al. 2024, 2409.11321): Adam in the eigenbasis of Shampoo's factors."""

from typing import Any

import jax
import optax

from of_jax.config import OptimConfig
from of_jax.optim import rotated
from of_jax.optim.layout import Layout
from of_jax.optim.preconditioners import vocabulary_axes

FIELDS = {"b1": 0.95, "b2": 0.95, "eps": 1e-8, "shampoo_beta": None,
          "precondition_frequency": 10, "max_precond_dim": 10_000}


def scale_by_soap(
    b1: float | jax.Array = 0.95, b2: float | jax.Array = 0.95,
    shampoo_beta: float | jax.Array | None = None, eps: float | jax.Array = 1e-8,
    precondition_frequency: int | jax.Array = 10, max_precond_dim: int = 10_000, *,
    merge_dims: bool = False, views: Any | None = None, fixed_axes: Any | None = None
) -> optax.GradientTransformation:
  """Direction of SOAP, without the learning rate; see of_jax.optim.rotated for the equations."""
  return rotated.scale_by_rotated_adam(
      b1, b2, shampoo_beta, eps, precondition_frequency, max_precond_dim, rotated.WholeMoment(),
      merge_dims=merge_dims, views=views, fixed_axes=fixed_axes)


def soap(learning_rate: optax.ScalarOrSchedule, b1: float | jax.Array = 0.95,
         b2: float | jax.Array = 0.95, shampoo_beta: float | jax.Array | None = None,
         eps: float | jax.Array = 1e-8, weight_decay: float | jax.Array = 0.01,
         precondition_frequency: int | jax.Array = 10, max_precond_dim: int = 10_000, *,
         mask: Any | None = None, merge_dims: bool = False, views: Any | None = None,
         fixed_axes: Any | None = None, multipliers: Any | None = None
         ) -> optax.GradientTransformation:
  """SOAP as the authors' code has it (github.com/nikhilvyas/SOAP), with its defaults but the rate.

  The first call only starts the bases: it moves nothing and decays nothing. An array of two axes
  or more is a stack of matrices [..., in, out]; the authors' would be one tensor, so stacked
  layers give them one basis for all. Vectors get Adam.

  Args:
    learning_rate: a number, or a schedule of the calls so far (the authors use 3e-3).
    b1, b2: decays of the moments.
    shampoo_beta: decay of the factors G G^T and G^T G; default b2.
    eps: added to sqrt(V), which is not corrected for bias.
    weight_decay: after the step, w <- w - learning_rate weight_decay w.
    precondition_frequency: steps between refreshes of the bases.
    max_precond_dim: larger sides keep their coordinates. Static: `optax.inject_hyperparams` needs
      `static_args="max_precond_dim"`.
    mask: which leaves decay, as in optax.adamw.
    merge_dims: as the authors': arrays are one tensor, and neighbouring axes one side while their
      product is at most `max_precond_dim`.
    views: of_jax.optim.matrices.views of the parameters, which then decide what is a matrix.
    fixed_axes: tree like the parameters of tuples: axes of an array whose side keeps its
      coordinates whatever its size.
    multipliers: of a learning rate by leaf that the caller applies, see rotated.step_then_decay.
  """
  return optax.chain(
      scale_by_soap(b1, b2, shampoo_beta, eps, precondition_frequency, max_precond_dim,
                    merge_dims=merge_dims, views=views, fixed_axes=fixed_axes),
      rotated.step_then_decay(learning_rate, weight_decay, mask, multipliers))


def from_config(optim: OptimConfig, learning_rate: optax.ScalarOrSchedule,
                layout: Layout) -> optax.GradientTransformation:
  """Builds SOAP for the matrices that the parameters' axes name; the vocabulary is not rotated."""
  assert (optim.b1 is not None and optim.b2 is not None and optim.eps is not None
          and optim.precondition_frequency is not None
          and optim.max_precond_dim is not None), "resolve the config first"
  return soap(learning_rate, optim.b1, optim.b2, optim.shampoo_beta, optim.eps,
              layout.weight_decay, optim.precondition_frequency, optim.max_precond_dim,
              mask=layout.decays, views=layout.views,
              fixed_axes=vocabulary_axes(layout.axes), multipliers=layout.multipliers)
