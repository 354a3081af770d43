"""Pairs of runs, sorted by what they compare. Enters: configs. Leaves: groups of seeds."""

import dataclasses
from collections.abc import Mapping, Sequence

from of_jax.config import Config

Pairs = Sequence[tuple[str, str]]


def without_seed(config: Config) -> Config:
  """Returns the config with its seed at 0: equal for runs that differ in seed alone."""
  return dataclasses.replace(config, train=dataclasses.replace(config.train, seed=0))


def by_setting(pairs: Pairs, configs: Mapping[str, Config]) -> list[list[tuple[str, str]]]:
  """Sorts pairs into groups that differ in seed alone, in order; each is a part of a claim."""
  found: list[tuple[tuple[Config, Config], list[tuple[str, str]]]] = []
  for a, b in pairs:
    key = (without_seed(configs[a]), without_seed(configs[b]))
    own = next((group for other, group in found if other == key), None)
    if own is None:
      found.append((key, [(a, b)]))
    else:
      own.append((a, b))
  return [group for _, group in found]


def share_order(pairs: Pairs, configs: Mapping[str, Config]) -> bool:
  """Tells whether the runs of every pair read the same data in the same order from one seed."""
  def order(config: Config) -> tuple[object, ...]:
    train = config.train
    return config.data.corpus, train.seed, train.batch_size, train.sequence_length, train.steps

  return all(order(configs[a]) == order(configs[b]) for a, b in pairs)
