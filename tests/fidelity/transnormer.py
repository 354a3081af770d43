"""TransNormerLLM's layers against its authors' code."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from of_jax import config as config_lib
from of_jax.config import Config
from of_jax.models.blocks.pre import PreNorm
from of_jax.models.probe import Context
from tests.fidelity import Comparison
from tests.fidelity.norms import golden, relative
from tests.golden import transnormer as script

_PLACES = {"query": ("attention", "query"), "key": ("attention", "key"),
           "value": ("attention", "value"), "gate": ("attention", "gate", "linear"),
           "out": ("attention", "out"), "mlp_gate": ("mlp", "gate"), "mlp_up": ("mlp", "up"),
           "mlp_down": ("mlp", "down")}


def error(form: str, chunk: int) -> float:
  """Compares each layer's output, and gradients of the input and of the first attention."""
  theirs, given = golden(script), script.inputs()
  model = config_lib.apply_overrides(Config(), [(f"model.{name}", str(value)) for name, value in {
      "attention": "linear", "positions": "none", "linear_positions": form, "linear_chunk": chunk,
      "norm": "srms", "mlp": "sglu", "mlp_width": script.HIDDEN, "width": script.WIDTH,
      "heads": script.HEADS, "depth": script.DEPTH}.items()]).model
  graph, template = nnx.split(PreNorm(nnx.Rngs(0), model))
  positions_BxT = jnp.broadcast_to(jnp.arange(script.TOKENS), (script.ROWS, script.TOKENS))

  def block(number: int) -> dict[str, Any]:
    pure = nnx.to_pure_dict(template)
    for name, place in _PLACES.items():
      part = functools.reduce(lambda tree, key: tree[key], place, pure)
      part["kernel"] = jnp.asarray(given[name][number]).reshape(part["kernel"].shape)
    return pure

  def run(blocks: list[Any], x: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
    outputs = []
    for number, pure in enumerate(blocks):
      state = jax.tree.map(lambda leaf: leaf, template)
      nnx.replace_by_pure_dict(state, pure)
      x = nnx.merge(graph, state)(x, Context(positions_BxT, layer=number + 1))
      outputs.append(x)
    return jnp.sum(x * given["gradient"]), outputs

  (_, outputs), (of_blocks, of_x) = jax.jit(jax.value_and_grad(run, (0, 1), has_aux=True))(
      [block(number) for number in range(script.DEPTH)], given["x"])
  first = of_blocks[0]["attention"]
  kernels = [first[name]["kernel"] for name in ("query", "key", "value")]
  found = {**{f"y{n}": y for n, y in enumerate(outputs)}, "x_gradient": of_x,
           "qkvu_gradient": jnp.concatenate([k.reshape(script.WIDTH, -1) for k in (
               *kernels, first["gate"]["linear"]["kernel"])], 1),
           "out_gradient": first["out"]["kernel"].reshape(-1, script.WIDTH)}
  if form != "none":
    found["theta_gradient"] = first["theta"]
  assert {f"{form}/{name}" for name in found} == {k for k in theirs if k.startswith(form)}
  return max(relative(np.asarray(value), theirs[f"{form}/{name}"]) for name, value in found.items())


COMPARISONS = [
    Comparison(f"TransNormerLLM, {script.DEPTH} layers, LRPE in {form}, chunks of {chunk}",
               "weigao266/TNL-MoE", "007576f", "2026-11-28",
               "largest relative difference of outputs and gradients",
               functools.partial(error, form, chunk), 1e-4)
    for form, chunk in (("first", 256), ("none", 4), ("all", 1))]
