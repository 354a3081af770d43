"""Models as pure functions of a dictionary of parameters.

The train step is plain JAX over dictionaries; the NNX module exists only inside `init` and
`apply`. Roles and axes are read off the parameters, which state both when they are created.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from of_jax import variants
from of_jax.config import Config
from of_jax.config.roles import ROLES
from of_jax.models.numerics import Numerics
from of_jax.models.probe import Intervene, Observer, Penalise, Statistics
from of_jax.models.stack import StackedNetwork

Parameters = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Network:
  """Model without its parameters.

  Attributes:
    shapes: tree of jax.ShapeDtypeStruct.
    roles: tree of roles, one a parameter.
    axes: tree of tuples of logical axes, one name an axis of the parameter.
  """

  graph: Any
  template: Any
  make: Callable[[jax.Array], nnx.Module]
  shapes: Parameters
  roles: Parameters
  axes: Parameters

  def init(self, key: jax.Array) -> Parameters:
    """Draws fresh parameters, a function of the key alone."""
    return nnx.to_pure_dict(nnx.state(self.make(key), nnx.Param))

  def apply(self, parameters: Parameters, inputs: jax.Array,
            documents_BxT: jax.Array | None = None, *, dropout_key: jax.Array | None = None,
            observe: Observer | None = None, training: bool = False
            ) -> tuple[jax.Array, dict[str, Statistics]]:
    """Computes logits [batch, time, vocabulary] and statistics, see StackedNetwork.__call__."""
    return self._merge(parameters)(
        inputs, documents_BxT, dropout_key=dropout_key, observe=observe, training=training)

  def stream(self, parameters: Parameters, inputs: jax.Array,
             documents_BxT: jax.Array | None = None, *, dropout_key: jax.Array | None = None,
             observe: Observer | None = None, intervene: Intervene | None = None,
             penalise: Penalise | None = None, training: bool = False,
             numerics: Numerics | None = None
             ) -> tuple[jax.Array, jax.Array, dict[str, Statistics]]:
    """Computes the input of the unembedding [batch, time, width], the unembedding [width,
    vocabulary] and statistics, see StackedNetwork.stream."""
    model = self._merge(parameters)
    x_BxTxD, statistics = model.stream(
        inputs, documents_BxT, dropout_key=dropout_key, observe=observe, intervene=intervene,
        penalise=penalise, training=training, numerics=numerics)
    return x_BxTxD, model.unembedding_table(), statistics

  def unembedding_table(self, parameters: Parameters) -> jax.Array:
    """Returns the unembedding, [width, vocabulary]."""
    return self._merge(parameters).unembedding_table()

  def trained(self, tree: Parameters) -> Parameters:
    """Selects what is trained of a tree like the parameters: all but the running statistics."""
    return _select(tree, self.roles, lambda role: role != "running")

  def running(self, tree: Parameters) -> Parameters:
    """Selects the running statistics, whose "gradient" is their new value."""
    return _select(tree, self.roles, lambda role: role == "running")

  def joined(self, trained: Parameters, running: Parameters) -> Parameters:
    """Joins the parts that `trained` and `running` select."""
    joined: Parameters = unflatten_dict({**flatten_dict(trained), **flatten_dict(running)})
    return joined

  def _merge(self, parameters: Parameters) -> StackedNetwork:
    state = jax.tree.map(lambda leaf: leaf, self.template)
    nnx.replace_by_pure_dict(state, parameters)
    model: StackedNetwork = nnx.merge(self.graph, state, copy=True)
    return model


def build_network(config: Config) -> Network:
  """Builds the network of a resolved config. Allocates nothing.

  Raises:
    ValueError: a parameter without a role, or with an axis too few.
  """

  network = variants.load_class("models", config.model.kind, StackedNetwork)

  def make(key: jax.Array) -> StackedNetwork:
    return network.of_config(config, nnx.Rngs(params=key))

  abstract = nnx.eval_shape(make, jax.ShapeDtypeStruct((), jax.random.key(0).dtype))
  graph, template = nnx.split(abstract, nnx.Param)
  roles, axes = {}, {}
  for path, variable in nnx.to_flat_state(template):
    role = variable.get_metadata().get("role")
    if role not in ROLES:
      raise ValueError(f"parameter {'/'.join(map(str, path))} has the role {role}, not one of "
                       f"{', '.join(ROLES)}")
    named = variable.get_metadata()["axes"]
    # Stacked blocks have one axis more than a block's own parameter.
    stacked = ("layers",) if path[0] == "stacks" else ()
    roles[path], axes[path] = role, stacked + named
  shapes = nnx.to_pure_dict(template)
  return Network(graph, template, make, shapes, unflatten_dict(roles), unflatten_dict(axes))


def named_leaves(tree: Parameters, is_leaf: Callable[[Any], bool] | None = None
                 ) -> dict[str, Any]:
  """Names the leaves of a tree by their path, as in `stacks/0/mlp/up/kernel`."""
  leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
  return {"/".join(str(key.key) for key in path): leaf for path, leaf in leaves}


def _select(tree: Parameters, roles: Parameters, keep: Callable[[str], bool]) -> Parameters:
  """Selects the leaves whose roles are kept; a dictionary that would be empty is left out."""
  flat_roles = flatten_dict(roles)
  leaves = flatten_dict(tree, is_leaf=lambda path, node: path in flat_roles)
  selected: Parameters = unflatten_dict(
      {path: leaves[path] for path, role in flat_roles.items() if keep(role)})
  return selected
