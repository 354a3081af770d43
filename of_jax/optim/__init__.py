"""Optimisers by parameter role, and learning-rate schedules.

Every optimiser is an optax.GradientTransformation. On plain arrays, one of two axes or more is
[..., in, out] and batched over what leads; `views` and `mask` say otherwise.

What gradients of an unusual size do, in all of them: zeros leave weight decay and what momentum
there is; sizes from 1e-20 to 1e15 leave parameters and state finite. Squares end at 1.8e19 in
float32: above, adafactor, soap, rotated_adafactor and shampoo give NaN, unless the gradient is
clipped before (`optim.clip_norm`), which makes zeros of it. A NaN makes NaN of its own matrix and
of that one's state, and of all where the gradient is clipped by the norm of all.
"""

from of_jax.optim.build import build_optimizer, describe
from of_jax.optim.layout import Layout, lay_out
from of_jax.optim.normalize_project import nap
from of_jax.optim.optimizers.adafactor import adafactor, scale_by_adafactor
from of_jax.optim.optimizers.adamp import adamp, scale_by_adamp
from of_jax.optim.optimizers.muon import muon, scale_by_muon
from of_jax.optim.optimizers.rotated_adafactor import rotated_adafactor, scale_by_rotated_adafactor
from of_jax.optim.optimizers.sgdp import scale_by_sgdp, sgdp
from of_jax.optim.optimizers.shampoo import scale_by_shampoo, shampoo
from of_jax.optim.optimizers.sinkgd import scale_by_mngd, sinkgd
from of_jax.optim.optimizers.soap import scale_by_soap, soap
from of_jax.optim.optimizers.swan import scale_by_swan, swan
from of_jax.optim.scaling import scale_init
from of_jax.optim.schedules import learning_rate_schedule

__all__ = ["Layout", "adafactor", "adamp", "build_optimizer", "describe", "lay_out",
           "learning_rate_schedule", "muon", "nap", "rotated_adafactor", "scale_by_adafactor",
           "scale_by_adamp", "scale_by_mngd", "scale_by_muon", "scale_by_rotated_adafactor",
           "scale_by_sgdp", "scale_by_shampoo", "scale_by_soap", "scale_by_swan", "scale_init",
           "sgdp", "shampoo", "sinkgd", "soap", "swan"]
