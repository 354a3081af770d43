"""Kinds of model by name, as far as a config needs to know them: read without importing jax.

`of_jax/objectives/tasks/KIND.py` is what `model.kind=KIND` means; of_jax/models/KIND.py has its
network. The task's file states in constants what is here an attribute.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from of_jax import variants

FOLDER = "objectives/tasks"


@dataclasses.dataclass(frozen=True)
class Kind:
  """One kind of model.

  Attributes:
    name: `model.kind`.
    inputs: `tokens` or `images`, which decides the corpora that it can be given.
    sequence_length: the only `train.sequence_length` that it has; None for any.
    sites: where its activations are watched, in the order of the forward pass.
    has_attention: whether it reads the fields of heads and attention, and attention's metrics
      are defined.
    hidden_ratio: hidden units of an MLP over the width, where `model.mlp_width` is not given; a
      gated form has two thirds of them.
    reads: section -> the fields of it that it reads; a section that is not named is read whole.
    loss: `cross-entropy` or `squared error`, in words for messages.
    starts_at_zero: whether its unembedding starts at zero, so that it must be trained.
    is_quantisable: whether of_jax.quantise knows its linear maps, and perplexity is its measure.
  """

  name: str
  inputs: str
  sequence_length: int | None
  sites: tuple[str, ...]
  has_attention: bool
  hidden_ratio: int
  reads: Mapping[str, frozenset[str]]
  loss: str
  starts_at_zero: bool
  is_quantisable: bool

  @property
  def unit(self) -> str:
    """Plural of the thing that a step consumes and a rate counts."""
    return self.inputs


@functools.cache
def kind_of(name: str) -> Kind:
  """Reads the declaration of a kind of model off its task's file.

  Raises:
    LookupError: a constant is missing.
  """
  values: dict[str, Any] = {
      field.name: variants.literal(FOLDER, name, field.name.upper())
      for field in dataclasses.fields(Kind) if field.name != "name"}
  reads = {section: frozenset(names) for section, names in (values.pop("reads") or {}).items()}
  return Kind(name, reads=reads, **values)


def kinds_on(inputs: str) -> tuple[str, ...]:
  """The kinds of model that read `tokens` or `images`."""
  return tuple(name for name in variants.names(FOLDER) if kind_of(name).inputs == inputs)


def readers_of(section: str, field: str) -> tuple[str, ...]:
  """The kinds of model that read one field."""
  return tuple(name for name in variants.names(FOLDER)
               if field in kind_of(name).reads.get(section, {field}))
