"""Changes of chosen neurons at a site, to see what depends on them.

Enters: interventions as a user names them. Leaves: what a model's probes do with an activation,
see of_jax.models.probe.Intervene. What comes behind the site reads the changed value, and so do
its own statistics.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from of_jax.config import Config, values
from of_jax.config.declare import LARGEST_NUMBER
from of_jax.config.declared_metrics import SITES
from of_jax.errors import UserError
from of_jax.quantise.hadamard import sylvester

if TYPE_CHECKING:
  import jax

  from of_jax.models.probe import Intervene

KINDS = ("zero", "mean", "clip", "rotate")
# Above the layers and neurons of any model.
_LARGEST = 1 << 24
# Of each intervention, in order: the neurons' mean [layers, neurons] for `mean`, else None.
References = Sequence[Any]
Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Intervention:
  """A change of neurons at a site.

  Attributes:
    kind: zero, x_j = 0; mean, x_j = its mean over the tokens of a reference set; clip, x_j brought
      into [-limit, limit]; rotate, the chosen neurons as a row times a Hadamard matrix of entries
      +-1 / sqrt(n), which spreads one neuron over all n and is its own inverse.
    site: one of of_jax.models.probe.SITES.
    neurons: which; none twice.
    layer: number of the site's value from 0, as in telemetry; None for all.
    limit: of clip.
  """

  kind: str
  site: str
  neurons: tuple[int, ...]
  layer: int | None = None
  limit: float | None = None


def parse(text: str) -> Intervention:
  """Reads KIND:SITE:LAYER:NEURONS, and :LIMIT for clip; LAYER a number or all, NEURONS as 3,17.

  `topN` in place of neurons comes back as N negative ones, for
  `of_jax.analysis.evaluation.top_neurons` to fill.

  Raises:
    UserError: what is wrong, and what would be right.
  """
  where = f"--intervene={text}"
  form = "is not KIND:SITE:LAYER:NEURONS, as in zero:resid_pre:2:5,17 or clip:mlp_in:all:3:1.5"
  kind, *rest = text.split(":")
  if kind not in KINDS:
    raise UserError(f"{where}: {kind} is not one of {', '.join(KINDS)}")
  if len(rest) != (4 if kind == "clip" else 3):
    raise UserError(f"{where}: {'clip takes a LIMIT too; this ' * (kind == 'clip')}{form}")
  site, layer_text, neurons_text = rest[:3]
  if site not in SITES:
    raise UserError(f"{where}: no site {site}; there are {', '.join(SITES)}")
  try:
    layer = None if layer_text == "all" else _number(layer_text)
    top = neurons_text.startswith("top")
    neurons = (tuple(-1 - i for i in range(_number(neurons_text[3:]))) if top
               else tuple(map(_number, neurons_text.split(","))))
    limit = float(rest[3]) if kind == "clip" else None
  except ValueError:
    raise UserError(f"{where}: {form}") from None
  if top and layer is None:
    raise UserError(f"{where}: the top neurons are those of one layer; give its number")
  if limit is not None and not 0 < limit < LARGEST_NUMBER:
    raise UserError(f"{where}: clip needs a limit above 0")
  return Intervention(kind, site, neurons, layer, limit)


def _number(text: str) -> int:
  """Reads the number of a layer or neuron; ValueError where it cannot be one."""
  number = values.whole(text.strip())
  if number is None or number > _LARGEST:
    raise ValueError
  return number


def check_config(one: Intervention, config: Config) -> None:
  """Checks what a config says of a site: its layers, and where it is known its neurons.

  Raises:
    UserError: the model cannot have this change.
  """
  model = config.model
  width = {"mlp_hidden": model.mlp_width, "attn_q": None, "attn_k": None}.get(
      one.site, model.width)
  layers = 1 if one.site == "final" else model.depth
  # topN are filled later, from what is measured; N may be the whole width.
  named = one if one.neurons and min(one.neurons) >= 0 else dataclasses.replace(
      one, neurons=tuple(range(len(one.neurons))))
  check(named, layers, width or _LARGEST)


def check(one: Intervention, layers: int, width: int) -> None:
  """Checks that a site of `layers` values of `width` neurons can have this change.

  Raises:
    UserError: it cannot; the line says why.
  """
  where = f"intervention {one.kind} at {one.site}"
  if one.layer is not None and not 0 <= one.layer < layers:
    raise UserError(f"{where}: layer {one.layer}; its layers are 0 to {layers - 1}")
  wrong = [neuron for neuron in one.neurons if not 0 <= neuron < width]
  if wrong or not one.neurons:
    raise UserError(f"{where}: neuron {wrong[0] if wrong else 'none'}; there are 0 to {width - 1}")
  if len(set(one.neurons)) < len(one.neurons):
    raise UserError(f"{where}: a neuron is named twice")
  if one.kind == "rotate" and len(one.neurons) % 2:
    raise UserError(f"{where}: {len(one.neurons)} neurons; a Hadamard matrix needs an even number")


def hadamard(size: int) -> Floats:
  """Builds an orthogonal and symmetric matrix [size, size] of Sylvester's, block by block.

  A block is a Hadamard matrix over the root of its size, which is the largest power of two that
  divides `size`: all of 64 neurons are one, of 96 there are three of 32.
  """
  block = size & -size
  matrix: Floats = np.kron(np.eye(size // block), sylvester(block)).astype(np.float64)
  return matrix


def apply(interventions: Sequence[Intervention], references: References) -> "Intervene":
  """Makes what a model takes as `intervene`; a site that nothing names is given back as it is."""
  import jax.numpy as jnp

  def changed(one: Intervention, reference: Any, old: "jax.Array", layer: Any) -> "jax.Array":
    if one.kind == "zero":
      return jnp.zeros_like(old)
    if one.kind == "clip":
      assert one.limit is not None
      return jnp.clip(old, -one.limit, one.limit)
    if one.kind == "rotate":
      return old @ jnp.asarray(hadamard(len(one.neurons)), jnp.float32)
    # Outside the blocks the number is 0, and the site has one value.
    return jnp.broadcast_to(jnp.asarray(reference)[jnp.maximum(layer - 1, 0)], old.shape)

  def intervene(site: str, x_BxTxD: "jax.Array", layer: Any) -> "jax.Array":
    for one, reference in zip(interventions, references, strict=True):
      if one.site != site:
        continue
      neurons = np.asarray(one.neurons)
      old = x_BxTxD[..., neurons].astype(jnp.float32)
      new = changed(one, reference, old, layer)
      if one.layer is not None and site != "final":
        new = jnp.where(layer == one.layer + 1, new, old)
      x_BxTxD = x_BxTxD.at[..., neurons].set(new.astype(x_BxTxD.dtype))
    return x_BxTxD

  return intervene
