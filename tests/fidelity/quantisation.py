"""Bondarenko et al.'s whole quantised OPT: ranges, steps, whole numbers and loss."""

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from of_jax.analysis import imported, quantisation
from of_jax.analysis.evaluation import network_of
from of_jax.quantise import parameters, scheme
from of_jax.quantise.numerics import FindBounds, Quantised, activation_grid, weight_grid
from tests.fidelity import Comparison
from tests.golden import foreign
from tests.golden import quantised_opt as golden

_KERNELS = {"self_attn.q_proj": "attn_query", "self_attn.k_proj": "attn_key",
            "self_attn.v_proj": "attn_value", "self_attn.out_proj": "attn_output",
            "fc1_act": "mlp_up", "fc2": "mlp_down"}
_GAINS = {"self_attn_layer_norm": "attention_norm", "final_layer_norm": "mlp_norm"}
_ORDER = ("resid_pre", "attn_in", "attn_q", "attn_k", "attn_v", "attn_scores", "attn_weights",
          "attn_context", "attn_out", "attn_sum", "resid_mid", "mlp_in", "mlp_hidden", "mlp_out",
          "mlp_sum", "resid_post", "final")


@functools.cache
def numbers() -> dict[str, np.ndarray]:
  """Returns the golden."""
  with np.load(Path(golden.__file__).with_suffix(".npz")) as file:
    return dict(file)


def batch(tokens: np.ndarray) -> dict[str, np.ndarray]:
  """Makes a batch of whole windows, of which the last token has no target."""
  return {"inputs": tokens, "targets": np.roll(tokens, -1, 1),
          "weights": np.ones(tokens.shape, np.float32) * (np.arange(tokens.shape[1]) + 1 < (
              tokens.shape[1]))}


@functools.cache
def measured(name: str, label: str) -> dict[str, float]:
  """Compares one model at one pair of bits with the golden."""
  mine = {key.removeprefix(f"{name}/{label}/"): value for key, value in numbers().items()
          if key.startswith(f"{name}/{label}/")}
  with tempfile.TemporaryDirectory() as folder:
    (Path(folder) / "config.json").write_text(json.dumps(golden.config(name)))
    (Path(folder) / "model.safetensors").write_bytes(foreign.safetensors(golden.weights(name)))
    model = imported.load(Path(folder))
  tokens = numbers()[f"{name}/tokens"].astype(np.int32)
  bits = dict(zip(("weight_bits", "activation_bits"), golden.BITS[label]))
  theirs = scheme.of_model(scheme.preset_scheme("bondarenko", **bits), model.config)
  found = quantisation.calibrate(
      model, [batch(rows) for rows in tokens[:16].reshape(4, -1, golden.LENGTH)], theirs)
  loss = quantisation.loss(model, [batch(tokens[16:])], theirs, found)
  plain = quantisation.plain_loss(model, [batch(tokens[16:])])[0]
  ranges, steps, codes = [], [], []
  for site, ends in found.ranges.items():
    for layer, (low, high) in enumerate(zip(*map(np.asarray, ends))):
      expected = mine.pop(f"{site}/{layer}/range")
      ranges.append(max(abs(np.ravel([low, high]) - expected)) / np.ptp(expected))
      steps.append(float(activation_grid(low, high, theirs).scale.item()
                         / mine.pop(f"{site}/{layer}/step")) - 1)
  for key, (scale, ours) in _weights(model, theirs, found).items():
    steps.append(scale / float(mine.pop(f"{key}/step")) - 1)
    codes.append(_others(*ours, mine.pop(f"{key}/codes")))
  # One that was rounded the other way changes what follows: the first tells whether it was a tie.
  ours = _activations(model, theirs, found, tokens[16:17])
  others = [_others(*ours[key], mine.pop(f"{key}/codes")) for key in sorted(ours, key=_in_order)]
  codes.append(next(filter(None, others), 0.0))
  lost = float(mine.pop("loss"))
  assert not mine, f"not compared: {sorted(mine)}"
  return {"ranges": max(ranges), "steps": max(map(abs, steps)), "codes": max(codes),
          "loss": abs(loss - lost), "plain": abs(plain - float(numbers()[f"{name}/loss"])),
          "lost": lost - float(numbers()[f"{name}/loss"])}


def _in_order(key: str) -> tuple[int, int]:
  """Returns the place of a site and layer in the forward pass."""
  site, layer = key.split("/")
  outside = site in ("resid_post", "final")
  return golden.LAYERS if outside else int(layer), _ORDER.index(site)


def _others(codes: np.ndarray, place: np.ndarray, expected: np.ndarray) -> float:
  """Finds how far from a tie, in steps, a number is that theirs rounds the other way."""
  codes, place = np.ravel(codes), np.ravel(place)
  wrong = codes != expected.ravel()
  far = np.abs(np.abs(place - np.floor(place)) - 0.5)
  far = np.where(np.abs(codes - expected.ravel()) > 1, np.inf, far)
  return float(np.max(far, initial=0, where=wrong))


def _weights(model: Any, theirs: Any, found: Any) -> dict[str, Any]:
  """Returns of each of their weights the step, and our whole numbers in their order."""
  network = network_of(model.config)
  kept = jax.device_get(network.stream(
      model.params, np.zeros((1, 2), np.int32), numerics=Kernels(theirs, found.bounds))[2])
  each: dict[str, Any] = {}
  for layer in range(golden.LAYERS):
    for part, name in _KERNELS.items():
      one = {key: value[layer] for key, value in kept[name].items()}
      each[f"layers.{layer}.{part}"] = float(one["scale"]), (one["codes"].T, one["place"].T)
  for path, site, stacked in parameters.sites(network):
    w = functools.reduce(lambda tree, key: tree[key], path, model.params)
    bounds = found.bounds["/".join(path)]
    for layer, (values, bound) in enumerate(zip(w, bounds) if stacked else [(w, bounds)]):
      grid = weight_grid(values, np.asarray(bound).reshape(()), theirs)
      if site == "norm_gains" and path[0] == "stacks":
        part = next(part for part, ours in _GAINS.items() if ours == path[2])
        key = f"layers.{layer}.{part}"
      else:
        key = {"token_table": "embed_tokens", "position_table": "embed_positions.quant_embedding",
               "norm_gains": "final_layer_norm"}[site]
      codes, place = np.asarray(grid.integers(values)), np.asarray(values / grid.scale)
      if site == "position_table":
        # Theirs has two rows more, which no position reads and the golden has 0 in.
        codes, place = (np.pad(rows, ((2, 0), (0, 0))) for rows in (codes, place))
      each[key] = float(grid.scale), (codes, place)
  return each


class Kernels(FindBounds):
  """Keeps of every kernel the step of its grid, and the whole numbers."""

  def __init__(self, theirs: Any, bounds: Any):
    super().__init__(theirs)
    self._bounds = bounds

  def product(self, name: str, site: str, linear: Any, x: jax.Array, layer: Any
              ) -> tuple[jax.Array, Any]:
    shape = linear.weight().shape
    w = linear.weight().reshape(int(np.prod(shape[:linear.inputs])), -1)
    grid = weight_grid(w, self._bounds[name][layer - 1].reshape(()), self._scheme)
    return linear(x), {"codes": grid.integers(w), "place": w / grid.scale, "scale": grid.scale}


class Activations(Quantised):
  """Keeps the whole numbers of every activation, and where between two of them it was."""

  def activation(self, site: str, x: jax.Array, layer: Any) -> tuple[jax.Array, Any]:
    y, _ = super().activation(site, x, layer)
    if not self._chosen[site]:
      return y, None
    grid = self._grid(site, x, layer)
    return y, {"codes": grid.integers(x), "place": x / grid.scale}


def _activations(model: Any, theirs: Any, found: Any, tokens: np.ndarray) -> dict[str, Any]:
  network = network_of(model.config)
  chosen = {site: site in theirs.sites for site in scheme.SITES}
  rounded = parameters.rounded(network, model.params, theirs, found.bounds, chosen)
  kept = jax.device_get(network.stream(rounded, tokens, numerics=Activations(
      theirs, found.bounds, found.ranges, chosen))[2])
  each = {}
  for site, one in kept.items():
    for layer, pair in enumerate(zip(one["codes"], one["place"])):
      if site == "attn_context":  # Theirs has heads before time.
        pair = tuple(x.reshape(*x.shape[:2], golden.HEADS, -1).swapaxes(1, 2) for x in pair)
      each[f"{site}/{layer}"] = pair
  return each


def worst(what: str) -> float:
  """Finds the largest error of a kind over all models and bits."""
  return max(measured(name, label)[what] for name in golden.MODELS for label in golden.BITS)


def _comparison(measure: str, what: str, tolerance: float) -> Comparison:
  return Comparison(
      "preset bondarenko of OPT (plain, with an outlier in its gains, Post-Norm) at W8A8, W4A8 and "
      "W6A6", "github.com/Qualcomm-AI-research/outlier-free-transformers", "1e59744", "2026-11-27",
      measure, functools.partial(worst, what), tolerance, slow=True)


COMPARISONS = [
    _comparison("largest difference of an end of a range, relative to the range", "ranges", 1e-5),
    _comparison("largest relative difference of a step", "steps", 1e-5),
    _comparison("how far from a tie, in steps, the first number rounded the other way is", "codes",
                1e-3),
    _comparison("largest difference of the loss, nats a token", "loss", 1e-3)]
