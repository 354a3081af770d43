"""Traits of variants: what the config and others ask of a variant's file without importing jax.

A file states a trait as a constant at its top, `GATED = True`; one that it leaves out has the
default below, which is the careful choice. A constant that is no trait is an error, so that a
misspelt one is not taken for left out. Private ones (`_FLOOR`) are the file's own.
"""

import dataclasses
import functools
import typing
from collections.abc import Mapping
from typing import Any, Literal

from of_jax import user_code, variants
from of_jax.errors import nearest

BLOCKS, NORMS, MLPS, _, GATES = variants.FOLDERS
OPTIMIZERS = "optim/optimizers"
# What files of variants state beside traits, see of_jax.config.sites.
_ELSEWHERE = ("SITES",)


@dataclasses.dataclass(frozen=True)
class Block:
  """Traits of a residual block.

  Attributes:
    norms: whether the block must have norms, is one without them too (`model.norm=none`), or
      reads no `model.norm` at all.
    attention_norm: whether some norm's output goes to attention alone.
    qk_norm: the norm that `model.qk_norm=auto` stands for.
    mlp_norm: the norm that `model.mlp_norm=auto` stands for.
    normed_nonlinearities: whether a norm has to stand before every nonlinearity.
    beta: the rule that `model.beta` follows where it is not given, see of_jax.config.resolve;
      none: no gain; residual_scale: the rule that the field of that name chooses.
    norm_outputs: what reads the norms' outputs: linear `maps` alone; the `stream`, or what is
      added to it; the `gain` of a branch, which is added to it then. A rotation of the stream
      passes through such blocks. None: not said, and no rotation.
    mlp: whether the block must have an MLP, or is one without it too (`model.mlp=none`).
  """

  norms: Literal["required", "optional", "none"] = "required"
  attention_norm: bool = False
  qk_norm: str = "none"
  mlp_norm: str = "none"
  normed_nonlinearities: bool = False
  beta: Literal["none", "inverse_sqrt_2_depth", "residual_scale"] = "none"
  norm_outputs: Literal["maps", "stream", "gain"] | None = None
  mlp: Literal["required", "optional"] = "required"


@dataclasses.dataclass(frozen=True)
class Norm:
  """Traits of a norm.

  Attributes:
    over_any_axis: whether `model.qk_norm` and `model.mlp_norm` may name it.
    has_eps: whether it divides by something to which `model.norm_eps` is added.
    has_root: whether that is a root, so that `model.norm_eps_placement` says something.
    gain_per_neuron: whether it multiplies each neuron by a number of its own.
    rotation: which rotations of the stream the norm, without its gains, passes through: `any`,
      or those that keep each token's mean over the neurons. None: not said, and none.
  """

  over_any_axis: bool = False
  has_eps: bool = True
  has_root: bool = True
  gain_per_neuron: bool = True
  rotation: Literal["any", "keeps_mean"] | None = None


@dataclasses.dataclass(frozen=True)
class MLP:
  """Traits of an MLP.

  Attributes:
    gated: whether it has a third matrix, for which `model.mlp_width` has two thirds by default.
    has_nonlinearity: whether there is one for `model.mlp_norm` to stand before.
    causal: whether a token's output depends, in evaluation, on no later token of its row.
  """

  gated: bool = False
  has_nonlinearity: bool = True
  causal: bool = True


@dataclasses.dataclass(frozen=True)
class Gate:
  """Traits of a gate on the heads' outputs.

  Attributes:
    reads: how it reads attention's input: through linear `maps`, if at all; as a slice of
      neurons a head, for which heads x head_dim must be the width. None: not said, and no
      rotation of the stream passes through it.
  """

  reads: Literal["maps", "slices"] | None = None


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """Traits of an optimiser.

  Attributes:
    fields: fields of the config's `optim` that it reads and not all others do, with its defaults.
      This one has to be stated.
    is_adam: whether its update has Adam's size whatever the gradient's, for which the rules of
      `optim.scaling` hold.
    sums_factors: whether `optim.shampoo_beta` may be 1, which sums its factors.
  """

  fields: Mapping[str, Any]
  is_adam: bool = False
  sums_factors: bool = False


def block(name: str) -> Block:
  """Traits of the block that `model.block` names."""
  found: Block = of(BLOCKS, name)
  return found


def norm(name: str) -> Norm:
  """Traits of the norm that `model.norm` names."""
  found: Norm = of(NORMS, name)
  return found


def mlp(name: str) -> MLP:
  """Traits of the MLP that `model.mlp` names."""
  found: MLP = of(MLPS, name)
  return found


def gate(name: str) -> Gate:
  """Traits of the gate that `model.attention_gate` names."""
  found: Gate = of(GATES, name)
  return found


def optimizer(name: str) -> Optimizer:
  """Traits of the optimiser that `optim.name` names."""
  found: Optimizer = of(OPTIMIZERS, name)
  return found


KINDS: Mapping[str, type[Any]] = {BLOCKS: Block, NORMS: Norm, MLPS: MLP, GATES: Gate,
                                  OPTIMIZERS: Optimizer}
_EVERY_TRAIT = {field.name.upper() for kind in KINDS.values() for field in dataclasses.fields(kind)}


@functools.cache
def of(folder: str, name: str) -> Any:
  """Traits of the variant in the file `folder/name.py`, of the type that KINDS has for it.

  Raises:
    BadVariant: a constant that is no trait, or has a value that its trait cannot have.
  """
  kind = KINDS[folder]
  hints = typing.get_type_hints(kind)
  known = {trait.upper(): trait for trait in hints}
  stated = variants.constants(folder, name)
  for constant in stated:
    # A file of the user's own may have constants of its own, and several kinds of variants.
    is_free = user_code.is_own(name) and (
        constant in _EVERY_TRAIT or not nearest(constant, known, 0.75))
    if constant.isupper() and not constant.startswith("_") and constant not in (
        *known, *_ELSEWHERE) and not is_free:
      raise variants.fault(folder, name, constant, "is no trait: they are "
                           f"{', '.join(known)}{nearest(constant, known)}")
  required = {field.name.upper() for field in dataclasses.fields(kind)
              if field.default is dataclasses.MISSING}
  values = {}
  for constant, trait in known.items():
    if constant in stated or constant in required:
      value = values[trait] = variants.literal(folder, name, constant)
      if wrong := _wrong(value, hints[trait]):
        raise variants.fault(folder, name, constant, f"is {value!r}: {wrong}")
  return kind(**values)


def _wrong(value: Any, hint: Any) -> str:
  """Says why a trait of type `hint` cannot have a value, or nothing."""
  choices = [choice for part in (hint, *typing.get_args(hint))
             if typing.get_origin(part) is Literal for choice in typing.get_args(part)]
  if choices:
    choices += [None] if type(None) in typing.get_args(hint) else []
    return "" if value in choices else f"not one of {', '.join(map(str, choices))}"
  kind = typing.get_origin(hint) or hint
  word = {bool: "true or false", str: "a text"}.get(kind, "a dictionary")
  return "" if isinstance(value, kind) else f"not {word}"
