"""A gate a head and token."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from of_jax.config import ModelConfig
from of_jax.models import partition
from of_jax.models.gates import Gate
from of_jax.models.parameter import attention_std, constant, normal, parameter, uniform
from of_jax.models.probe import Context

READS = "slices"


class HeadGate(Gate):
  """o_h = sigmoid(x_h . g_h + b_h) w_h v_h (Bondarenko et al. 2023, 2306.12929, Sec. 4.2).

  x_h is the head's own slice of what attention reads. b_h starts so that a gate reading zeros
  is `model.attention_gate_init`, 0.25 in their script for OPT.
  """

  def __init__(self, rngs: nnx.Rngs, model: ModelConfig):
    super().__init__(rngs, model)
    assert model.head_dim is not None, "resolve the config first"
    std = attention_std(model)
    init = uniform(model.head_dim ** -0.5) if std is None else normal(std)
    self.kernel = parameter(rngs, (model.heads, model.head_dim), init, "hidden",
                            ("heads", "head_dim"))
    logit = math.log(model.attention_gate_init / (1 - model.attention_gate_init))
    self.bias = parameter(rngs, (model.heads,), constant(logit), "bias", ("heads",))

  def __call__(self, y_BxTxHxK: jax.Array, x_BxTxD: jax.Array, context: Context) -> jax.Array:
    dtype, kernel_HxK = y_BxTxHxK.dtype, self.kernel[...]
    # Unsaid, XLA would split the heads of x, and on a (2, 2, 2) mesh it got the sum wrong.
    x_BxTxHxK = partition.constrain_batch(
        x_BxTxD.reshape(*x_BxTxD.shape[:-1], *kernel_HxK.shape))
    logits_BxTxH = jnp.einsum("bthk,hk->bth", x_BxTxHxK, kernel_HxK.astype(dtype))
    return y_BxTxHxK * jax.nn.sigmoid(logits_BxTxH + self.bias[...].astype(dtype))[..., None]
