"""Intermediates that a module sows as Flax has it, measured like any site.

`self.sow(nnx.Intermediate, "my_site", x)` in a block, norm or MLP of one's own, or in `enter` and
`leave` of a network, with `SITES = ("my_site",)` at the top of its file, makes `my_site` a site
that `telemetry.sites=my_site` watches. `nnx.capture` collects in the body of the scan over blocks,
where the observer turns what was sown into statistics: activations themselves would be kept for
every layer. What is sown is read and never changed, and no gradient reaches it, so the sites of
every model are probes instead (`Context.probe`): what analysis changes, quantisation rounds and
gradients are watched of goes through them.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from of_jax.config import ModelConfig
from of_jax.config.sites import chosen_files, own_sites
from of_jax.errors import UserError
from of_jax.models.probe import Context

ModuleT = TypeVar("ModuleT", bound=nnx.Module)
# Where a module stands in the one that is called: its attributes, outermost first.
Place = tuple[Any, ...]


def captured(function: Callable[[ModuleT], jax.Array], module: ModuleT, context: Context,
             model: ModelConfig) -> jax.Array:
  """Calls `function(module)` and leaves statistics of what it sows in `context.collected`.

  A site is named as it was sown. Where several modules sow one name it is `PLACE.NAME`, PLACE
  being the attributes that lead to the module, as in `attention_norm.my_site`; that form is
  understood everywhere.

  Args:
    function: calls the module.
    module: whose own and whose submodules' `sow` is collected.
    context: says with which observer.
    model: resolved, whose variants declare the names.

  Raises:
    UserError: a name that no variant of the model declares, is sown twice by one module, or is
      watched and sown in several places; an array that is not [batch, time, ...].
  """
  result, state = nnx.capture(function, nnx.Intermediate)(module)
  sown: dict[str, dict[Place, jax.Array]] = {}
  for (*place, name), variable in nnx.to_flat_state(state):
    if name not in own_sites(model):
      raise UserError(_undeclared(module, tuple(place), str(name), model))
    sown.setdefault(str(name), {})[tuple(place)] = _tokens(
        str(name), variable.get_value(), context)
  for name, places in sown.items():
    _observe(name, places, context)
  return result


def _observe(name: str, places: dict[Place, jax.Array], context: Context) -> None:
  first, *others = places.values()
  if not others and context.observe_at(name, first):
    return
  full_names = [".".join(map(str, (*place, name))) for place in places]
  met = [context.observe_at(full, x) for full, x in zip(full_names, places.values())
         if full != name]
  if others and not any(met) and context.observe_at(name, first):
    raise UserError(f"telemetry.sites: {name} is sown in several places; name one, as in "
                    f"telemetry.sites={full_names[0]}, of {', '.join(full_names)}")


def _tokens(name: str, values: Any, context: Context) -> jax.Array:
  """Checks what was sown and gives it as [batch, time, neurons]."""
  x, *more = values if isinstance(values, tuple) else (values,)
  if more:
    raise UserError(f"{name} is sown {1 + len(more)} times by one module; sow under two names")
  tokens = context.positions_BxT.shape
  shape = getattr(x, "shape", ())
  if len(shape) < 3 or shape[:2] != tokens:
    raise UserError(f"{name} is sown with the shape {shape}, not [batch, time, ...] with "
                    f"{tokens} in front")
  return jnp.reshape(jax.lax.stop_gradient(x), (*tokens, -1))


def _undeclared(module: nnx.Module, place: Place, name: str, model: ModelConfig) -> str:
  sower = type(dict(nnx.iter_modules(module))[place])
  files = [f"of_jax/{folder}/{file}.py" for folder, file in chosen_files(model)]
  own = sower.__module__.replace(".", "/") + ".py"
  where = own if own in files else f"of_jax/models/blocks/{model.block}.py"
  return (f'{sower.__name__} sows {name}, which no file declares; write SITES = ("{name}",) at '
          f"the top of {where}")
