"""The architecture half of Normalize-and-Project."""

from of_jax.models.blocks.pre import PreNorm

ATTENTION_NORM = True
QK_NORM = "rms"
MLP_NORM = "rms"
NORMED_NONLINEARITIES = True
NORM_OUTPUTS = "maps"


class NormBeforeNonlinearities(PreNorm):
  """pre, with softmax(Norm(q) Norm(k)^T) and phi(Norm(n W_up)) (Lyle et al. 2024, 2407.01800).

  A norm before every nonlinearity makes each matrix in front of one scale-invariant, which the
  projection of the weights (the other half, an optimiser's) needs. Here it is `model.qk_norm` and
  `model.mlp_norm`, which this block turns on.
  """
