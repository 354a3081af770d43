"""Changes of the second and fourth moments of a fixed batch's activations by one step."""

import jax
import jax.numpy as jnp

from of_jax.telemetry.activations import Activations
from of_jax.telemetry.family import Family, Statistics, group

KIND = "change"
SITES = ()
EVERY = 100
METRICS = {
    "m2": ("full", "mean_j(s2_j) before the step, on the first evaluation batch, as all to m4_u4",
           "activation^2", "0 and above", "He et al. 2024, 2405.19279, App. F"),
    "m4": ("full", "mean_j(s2_j^2) before the step", "activation^4", "0 and above",
           "He et al. 2024, 2405.19279, App. F"),
    "m2_u": ("full", "mean_j(b + c), what the step adds to m2; b = 2 mean_t(X D), "
             "c = mean_t(D^2), D the step's change of X", "activation^2", "any",
             "He et al. 2024, 2405.19279, App. F"),
    "m4_u1": ("full", "mean_j(2 a b), the linear part of what the step adds to m4; a = s2_j",
              "activation^4", "any", "He et al. 2024, 2405.19279, App. F"),
    "m4_u2": ("full", "mean_j(b^2 + 2 a c), the quadratic part", "activation^4", "0 and above",
              "He et al. 2024, 2405.19279, App. F"),
    "m4_u3": ("full", "mean_j(2 b c), the cubic part", "activation^4", "any",
              "He et al. 2024, 2405.19279, App. F"),
    "m4_u4": ("full", "mean_j(c^2), the quartic part", "activation^4", "0 and above",
              "He et al. 2024, 2405.19279, App. F"),
}


class MomentUpdates(Family):
  """m4(after) - m4(before) = u1 + u2 + u3 + u4, and m2(after) - m2(before) = m2_u."""

  def of_change(self, before: Activations, after: Activations) -> Statistics:
    # A token whose squares are not finite before or after is in neither sum, and makes both NaN.
    both = before.raw_BxTxD, after.raw_BxTxD
    is_within_G = (before.is_within_G & after.is_within_G)[:, None]
    sums = {"square": before.sum_square_GxD,
            "cross": before.totals(lambda x, y: x * (y - x), *both),
            "change": before.totals(lambda x, y: jnp.square(y - x), *both)}
    return {"count": before.count_G,
            **{name: jnp.where(is_within_G, value, jnp.nan) for name, value in sums.items()}}

  def finish(self, s: Statistics, no_first: bool) -> dict[str, jax.Array]:
    count = group(s, "count", no_first)[..., None]
    a, cross, c = (group(s, name, no_first, -2) / count for name in ("square", "cross", "change"))
    b = 2 * cross

    def mean(values: jax.Array) -> jax.Array:
      return jnp.mean(values, -1)

    return {"m2": mean(a), "m4": mean(jnp.square(a)), "m2_u": mean(b + c),
            "m4_u1": mean(2 * a * b), "m4_u2": mean(jnp.square(b) + 2 * a * c),
            "m4_u3": mean(2 * b * c), "m4_u4": mean(jnp.square(c))}
