"""Changes of the second and fourth moments of a fixed batch's activations by one step."""

import jax
import jax.numpy as jnp

from of_jax.telemetry.activations import FIRST, REST, Activations
from of_jax.telemetry.family import Family, Statistics, group
from of_jax.xla.pairs import Pair

KIND = "change"
SITES = ()
EVERY = 100
METRICS = {
    "m2": ("full", "mean_j(s2_j) before the step, on the first evaluation batch, in float32 "
           "whatever the compute type, as all to m4_u4", "activation^2", "0 and above",
           "He et al. 2024, 2405.19279, App. F"),
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
# Of a sum, the statistic of this name holds what float32 lacks.
_LOW = "_low"
# A product may lack a few times 2^-126, the smallest normal float32: means of terms that are this
# large are sure to 1e-3.
_SMALLEST = 2.0 ** -112


class MomentUpdates(Family):
  """m4(after) - m4(before) = u1 + u2 + u3 + u4, and m2(after) - m2(before) = m2_u.

  A small step's D has either sign, so that b is a sum of terms that cancel over tokens, and u1 one
  that cancels over neurons too: all of it is in pairs of float32 until it is rounded at the end.
  """

  def of_change(self, before: Activations, after: Activations) -> Statistics:
    x = Pair.exact(before.raw_BxTxD)
    change = Pair.difference(after.raw_BxTxD, before.raw_BxTxD)
    # A token whose squares are not finite before or after is in neither sum, and makes both NaN.
    counted_GxBxTx1 = (before.groups_GxBxT & before.within_BxT & after.within_BxT)[..., None]
    is_within_Gx1 = (before.is_within_G & after.is_within_G)[:, None]
    found = {"count": before.count_G, "max_x": before.max_G, "max_change": jnp.max(
        jnp.where(counted_GxBxTx1, jnp.abs(change.high), 0), (1, 2, 3))}
    for name, terms in (("square", x * x), ("cross", x * change), ("change", change * change)):
      total_GxD = terms.where(counted_GxBxTx1, 0).total(1, 2).where(is_within_Gx1, jnp.nan)
      found |= {name: total_GxD.high, name + _LOW: total_GxD.low}
    return found

  def finish(self, s: Statistics, no_first: bool) -> dict[str, jax.Array]:
    count = group(s, "count", no_first)[..., None]

    def mean_over_tokens(name: str) -> Pair:
      first, rest = (Pair(*(jnp.take(s[part], i, -2) for part in (name, name + _LOW)))
                     for i in (FIRST, REST))
      return (rest if no_first else first + rest) / count

    a, c = mean_over_tokens("square"), mean_over_tokens("change")
    b = mean_over_tokens("cross").times(2)
    by_neuron = {"m2": a, "m4": a * a, "m2_u": b + c, "m4_u1": (a * b).times(2),
                 "m4_u2": b * b + (a * c).times(2), "m4_u3": (b * c).times(2), "m4_u4": c * c}
    together = jax.tree.map(lambda *parts: jnp.stack(parts), *by_neuron.values())
    last = together.high.ndim - 1
    means = (together.total(last) / jnp.float32(together.high.shape[last])).rounded()
    # What is not 0 and reads as 0, or nearly.
    is_moved, is_there = (group(s, name, no_first) > 0 for name in ("max_change", "max_x"))
    is_lost = (jnp.mean(jnp.abs(together.high), -1) < _SMALLEST) & jnp.stack(
        [is_there if id_ in ("m2", "m4") else is_moved for id_ in by_neuron])
    return dict(zip(by_neuron, jnp.where(is_lost, jnp.nan, means)))
