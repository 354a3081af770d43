"""Names for the trees that a step takes and leaves."""

from collections.abc import Callable
from typing import Any, TypedDict

import jax
import optax

from of_jax.models.functional import Parameters

# Takes the lines that tell what happens.
Log = Callable[[str], None]
# `inputs`, `targets`, `weights` and, where attention stops at documents, `documents`; each [batch,
# time, ...].
Batch = dict[str, jax.Array]
# site, or role of parameters -> metric -> one value a layer, or one list a layer.
SiteMetrics = dict[str, dict[str, jax.Array]]
# float32 numbers by name; beside them `telemetry` and `optimizer`, SiteMetrics, where measured.
Metrics = dict[str, Any]


class State(TypedDict):
  """A run between two steps. Of runs trained together, every array has an axis of members."""

  params: Parameters
  opt_state: optax.OptState
  step: jax.Array
