"""Cost of quantisation. Enters: anything with a config and parameters, batches, a scheme.
Leaves: perplexity as it is and quantised, over calibration seeds and site by site.
"""

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from of_jax.analysis import replay
from of_jax.analysis.evaluation import Batch, Model, filled_rows, measure, network_of
from of_jax.analysis.runs import SITE
from of_jax.config import Config
from of_jax.data.corpora import prepare
from of_jax.errors import UserError
from of_jax.models.functional import Parameters
from of_jax.objectives.losses import cross_entropy
from of_jax.quantise import parameters, quantisers
from of_jax.quantise import scheme as schemes
from of_jax.quantise.forward import find_bounds, find_ranges, quantised_stream
from of_jax.quantise.numerics import Bounds, FindBounds, FindRanges, Ranges
from of_jax.quantise.rotation import rotate
from of_jax.quantise.scheme import Scheme
from of_jax.storage import remote

# Batches that ranges are found on, and how often they are drawn: Bondarenko et al.'s script.
CALIBRATION_BATCHES = 4
SEEDS = (0, 1, 2)


@dataclasses.dataclass(frozen=True)
class Calibration:
  """Bounds and ranges that static quantisation needs to know of a model, at sites."""

  bounds: Bounds
  ranges: Ranges
  sites: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Changed:
  """A model after a change to its config or parameters, as a rotation."""

  config: Config
  params: Parameters


def calibrate(model: Model, batches: Sequence[Batch], scheme: Scheme) -> Calibration:
  """Finds bounds of the weights, and ranges of activations on batches.

  They are the unquantised model's; or, in the preset bondarenko, of the model as it is quantised
  so far. Rows that only fill a batch do not count. Ranges that are found as tokens pass need no
  batch, and none is read.
  """
  schemes.check_model(scheme, model.config)
  scheme = schemes.of_model(scheme, model.config)
  bounds = _bounds(model.config, _of_weights(scheme))(model.params)
  given = [filled_rows(batch) for batch in batches] if scheme.is_static else []
  ranges = (_ranges_quantised if scheme.is_theirs else _ranges_as_trained)(
      model, given, scheme, bounds)
  return Calibration(bounds, ranges, scheme.sites)


def _ranges_as_trained(model: Model, batches: Sequence[Batch], scheme: Scheme, bounds: Bounds
                       ) -> Ranges:
  del bounds
  ranges: dict[str, tuple[jax.Array, jax.Array]] = {}
  for batch in batches:
    found = _ranges(model.config, _of_activations(scheme))(
        model.params, batch["inputs"], batch.get("documents"))
    for site, kept in found.items():
      new = kept["low"], kept["high"]
      ranges[site] = (quantisers.combine(ranges[site], new, scheme.activation_range)
                      if site in ranges else new)
  return ranges


def _ranges_quantised(model: Model, batches: Sequence[Batch], scheme: Scheme, bounds: Bounds
                      ) -> Ranges:
  ranges: Ranges = {}
  for number, batch in enumerate(batches):
    find, blank = _finder(model.config, _without_sites(scheme), scheme.sites)
    chosen = dict.fromkeys(scheme.sites, True)
    arguments = (model.params, dict(batch), bounds, chosen, number == 0)
    ranges = find(ranges or blank(*arguments), *arguments)
  return ranges


def loss(model: Model, batches: Sequence[Batch], scheme: Scheme, calibration: Calibration) -> float:
  """Measures the quantised model's loss, in nats a token over all batches, weighted by tokens.

  Args:
    calibration: of the scheme, or of one with more sites.
  """
  schemes.check_model(scheme, model.config)
  scheme = schemes.of_model(scheme, model.config)
  chosen: dict[str, bool] = {}
  if scheme.arithmetic == "integer":
    program = _program(model.config, scheme, ())
  else:
    # Which sites, the program is told: leaving out one or another compiles nothing.
    program = _program(model.config, _without_sites(scheme), calibration.sites)
    chosen = {site: site in scheme.sites for site in calibration.sites}
  total = count = 0.0
  for batch in batches:
    parts = program(model.params, dict(batch), calibration.bounds, calibration.ranges, chosen)
    total, count = total + float(parts["loss"]), count + float(parts["count"])
  return total / count


def plain_loss(model: Model, batches: Sequence[Batch]) -> tuple[float, float, dict[str, int]]:
  """Measures nats a token as trained, kurtosis of the stream (mean over layers), and counts tokens
  as `measure` does: `num_tokens`, `num_tokens_measured`."""
  found = measure(model, batches, (SITE,), ("kurtosis",))
  kurtosis = np.asarray(found["telemetry"][SITE]["kurtosis"], np.float64)
  return found["loss"], float(kurtosis.mean()), {
      name: found[name] for name in ("num_tokens", "num_tokens_measured")}


def draw(batches: Sequence[Batch], seed: int, count: int = CALIBRATION_BATCHES) -> list[Batch]:
  """Draws the batches that a seed calibrates on: `count` of those given, or all, in its order.
  """
  order = np.random.default_rng(seed).permutation(len(batches))
  return [batches[i] for i in order[:count]]


def quantise(model: Model, batches: Sequence[Batch], calibration: Sequence[Batch], scheme: Scheme,
             seeds: Sequence[int] = SEEDS, by_site: bool = False,
             log: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
  """Measures what quantise.json holds of one model.

  Args:
    batches: to evaluate on.
    calibration: what seeds draw batches from, see `draw`.
    by_site: whether to also leave out, and to quantise alone, each site of the scheme.
    log: gets a line as each evaluation ends.

  Raises:
    UserError: a scheme that cannot be carried out, or a model of images or without its sites.
  """
  schemes.check(scheme)
  schemes.check_model(scheme, model.config)
  present = sites_of(model.config, scheme.preset)
  if not set(scheme.sites) & set(present):
    raise UserError(f"sites={','.join(scheme.sites)}: this model has none of them; there are "
                    + ", ".join(present))
  if scheme.is_theirs:
    model = _in_float32(model)
  plain, kurtosis, counts = plain_loss(model, batches)
  log(f"as trained: {plain:.4f} nats a token")
  rotated: dict[str, float] = {}
  if scheme.hadamard:
    params, config = rotate(model.params, model.config)
    model = Changed(config, jax.device_put(params, jax.devices()[0]))
    rotated = dict(zip(("loss_rotated", "kurtosis_rotated"), plain_loss(model, batches)[:2]))
  # Dynamic ranges know no calibration: every seed gives the same.
  found = {seed: calibrate(model, draw(calibration, seed), scheme)
           for seed in (seeds if scheme.is_static else seeds[:1])}
  losses = []
  for seed, one in found.items():
    losses.append(loss(model, batches, scheme, one))
    log(f"{scheme.label}, seed {seed}: {losses[-1]:.4f} nats a token")
  result = {
      "label": scheme.label,
      "perplexity": _perplexity(plain), "loss": plain, **counts, "kurtosis": kurtosis,
      **rotated,
      "perplexity_quantised": {**_spread([_perplexity(one) for one in losses]),
                               "seeds": list(found)},
      "increase": _spread([one - plain for one in losses]),
      **{name: value for name, value in dataclasses.asdict(scheme).items() if name != "sites"},
      "sites": [site for site in scheme.sites if site in present], "by_site": {}}
  if by_site:
    seed, first = next(iter(found.items()))

    def perplexity(sites: Sequence[str]) -> float:
      own = dataclasses.replace(scheme, sites=tuple(sites))
      # Where ranges are found while all else is quantised, they are others.
      known = calibrate(model, draw(calibration, seed), own) if scheme.is_theirs else first
      return _perplexity(loss(model, batches, own, known))

    for site in result["sites"]:
      result["by_site"][site] = {
          "all_but": perplexity([other for other in scheme.sites if other != site]),
          "only": perplexity([site])}
  return result


def _in_float32(model: Model) -> Changed:
  """Changes the compute type: a narrower one does not hold the numbers of a grid."""
  inner = dataclasses.replace(model.config.model, compute_dtype="float32")
  return Changed(dataclasses.replace(model.config, model=inner), model.params)


def quantised(run: Path, steps: Sequence[int]) -> dict[str, Any]:
  """Analyses W8A8 and W4A8 of a run's last checkpoint, on its validation set, as Bondarenko et
  al.'s code has them."""
  model = replay.restore(run, steps[-1])
  schemes.check_model(Scheme(), model.config)
  corpus = prepare(model.config.data, lambda line: None)
  batches = replay.corpus_batches(model.config, corpus)
  calibration = replay.corpus_batches(model.config, corpus, "train",
                                      CALIBRATION_BATCHES * len(SEEDS))
  each = {}
  for bits in (8, 4):
    scheme = schemes.preset_scheme(schemes.BONDARENKO, weight_bits=bits)
    each[scheme.bits] = quantise(model, batches, calibration, scheme)
  first = next(iter(each.values()))
  return {
      "analysis": "quantised", "run": remote.name_of(run), "num_tokens": first["num_tokens"],
      "definition": "increase of the loss on the validation set, in nats a token, when the model "
      "is quantised by the preset bondarenko; kurtosis of the stream entering each block there, "
      "mean over layers",
      "steps": [{"step": model.step, "kurtosis": first["kurtosis"], "loss": first["loss"],
                 "schemes": each}]}


@functools.lru_cache(maxsize=8)
def sites_of(config: Config, preset: str = schemes.OF_JAX) -> tuple[str, ...]:
  """Finds the sites of scheme.SITES that a preset has in a model, by tracing it."""
  network, tokens = network_of(config), jax.ShapeDtypeStruct((1, 1), jnp.int32)
  parts = (schemes.of_model(schemes.preset_scheme(preset, sites=sites), config).sites
           for sites in (schemes.SITES, schemes.SITES_OF[schemes.BONDARENKO]))
  scheme = schemes.preset_scheme(preset, weight_range="min_max", activation_range="min_max",
                                 sites=tuple(set().union(*parts)))
  met = {"unembedding", *(site for _, site, _ in parameters.sites(network))}
  for finder in (FindBounds(scheme), FindRanges(scheme)):
    met |= set(jax.eval_shape(lambda params, x, own=finder: network.stream(
        params, x, numerics=own)[2], network.shapes, tokens))
  return tuple(site for site in schemes.SITES if site in met and site in scheme.sites)


@functools.lru_cache(maxsize=16)
def _bounds(config: Config, scheme: Scheme) -> Any:
  network, tokens = network_of(config), jnp.zeros((1, 1), jnp.int32)
  return jax.jit(lambda params: find_bounds(network, params, tokens, scheme))


@functools.lru_cache(maxsize=16)
def _ranges(config: Config, scheme: Scheme) -> Any:
  network = network_of(config)

  @jax.jit
  def run(params: Parameters, inputs: jax.Array, documents: jax.Array | None) -> Any:
    return network.stream(params, inputs, documents, numerics=FindRanges(scheme))[2]

  return run


@functools.lru_cache(maxsize=16)
def _finder(config: Config, scheme: Scheme, sites: tuple[str, ...]) -> Any:
  """Makes what finds the ranges after one batch more, and what makes some of their shapes."""
  network = network_of(config)

  def run(ranges: Ranges, params: Parameters, batch: Mapping[str, jax.Array], bounds: Bounds,
          chosen: Mapping[str, Any], is_first: jax.Array) -> Ranges:
    return find_ranges(network, params, batch, scheme, bounds, ranges, _of_all(chosen), is_first)

  def blank(params: Parameters, batch: Mapping[str, jax.Array], bounds: Bounds,
            chosen: Mapping[str, Any], is_first: bool) -> Ranges:
    del bounds, chosen, is_first
    plain = dataclasses.replace(scheme, sites=sites, activation_range="min_max")
    kept = jax.eval_shape(lambda params, batch: network.stream(
        params, batch["inputs"], batch.get("documents"), numerics=FindRanges(plain))[2],
        params, batch)
    return {site: (jnp.zeros(one["low"].shape, one["low"].dtype),
                   jnp.zeros(one["high"].shape, one["high"].dtype)) for site, one in kept.items()}

  return jax.jit(run), blank


@functools.lru_cache(maxsize=16)
def _program(config: Config, scheme: Scheme, sites: tuple[str, ...]) -> Any:
  """Makes what measures the loss; it is told which of `sites` are quantised, or the scheme is."""
  network = network_of(config)

  @jax.jit
  def run(params: Parameters, batch: Mapping[str, jax.Array], bounds: Bounds, ranges: Ranges,
          chosen: Mapping[str, Any]) -> Any:
    x_BxTxD, table_DxV = quantised_stream(network, params, batch, scheme, bounds, ranges,
                                          _of_all(chosen) if sites else None)
    return cross_entropy(x_BxTxD, table_DxV, batch["targets"], batch["weights"], 0.0,
                         config.model.logit_cap)[1]

  return run


def _of_all(chosen: Mapping[str, Any]) -> dict[str, Any]:
  """Tells of every site whether it is quantised; of those that are not given, False."""
  return {**dict.fromkeys(schemes.SITES, False), **chosen}


def _of_weights(scheme: Scheme) -> Scheme:
  """Keeps what decides bounds, so that schemes that agree on it share a program."""
  return Scheme(weight_bits=scheme.weight_bits, weight_granularity=scheme.weight_granularity,
                weight_range=scheme.weight_range, group_size=scheme.group_size,
                sites=scheme.sites, preset=scheme.preset)


def _of_activations(scheme: Scheme) -> Scheme:
  return Scheme(activation_bits=scheme.activation_bits, activation_range=scheme.activation_range,
                activation_granularity=scheme.activation_granularity, sites=scheme.sites)


def _without_sites(scheme: Scheme) -> Scheme:
  return dataclasses.replace(scheme, sites=())


def _spread(values: Sequence[float]) -> dict[str, float | None]:
  """Mean and standard deviation (divided by the count), which a single value has none of."""
  return {"mean": statistics.fmean(values),
          "std": statistics.pstdev(values) if len(values) > 1 else None}


def _perplexity(nats: float) -> float:
  return math.exp(nats) if nats < 700 else math.inf
