"""Baselines before their first step, against the code of Bondarenko et al."""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np

from of_jax.config import Config, ModelConfig, baselines, resolve
from of_jax.models.functional import build_network, named_leaves
from of_jax.optim import lay_out
from tests.fidelity import Comparison
from tests.golden import opt_baselines

GOLDEN = np.load(Path(opt_baselines.__file__).with_suffix(".npz"))
# A tensor of theirs -> ours, in a block or outside.
_BLOCK = {
    "self_attn.q_proj": "attention/query", "self_attn.k_proj": "attention/key",
    "self_attn.v_proj": "attention/value", "self_attn.out_proj": "attention/out",
    "self_attn.alpha": "attention/gate", "self_attn_layer_norm": "attention_norm",
    "fc1": "mlp/up", "fc2": "mlp/down", "final_layer_norm": "mlp_norm"}
_OUTSIDE = {
    "embed_tokens.weight": "embedding/token", "embed_positions.weight": "embedding/position",
    "final_layer_norm.weight": "final_norm/scale", "final_layer_norm.bias": "final_norm/bias"}


def config_of(name: str) -> Config:
  """The baseline that a script of theirs trains, of fewer blocks and tokens: all are alike."""
  config = baselines.baseline("opt_gated_default" if name == "gated_attention" else
                              "opt_pre_default")
  if name == "clipped_softmax":
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, attention_softmax="clipped"))
  return resolve(dataclasses.replace(
      config, model=dataclasses.replace(config.model, depth=3),
      data=dataclasses.replace(config.data, vocab_size=4096)))


def our_name(theirs: str) -> str:
  """The path of a parameter of theirs, without model.decoder, in ours."""
  if not theirs.startswith("layers."):
    return _OUTSIDE[theirs]
  module, kind = theirs.removeprefix("layers.").rsplit(".", 1)
  if kind == "weight":
    kind = "scale" if "norm" in module else "kernel"
  return f"stacks/0/{_BLOCK[module]}/{kind}"


def golden(name: str) -> dict[str, np.ndarray]:
  """[entries, mean, standard deviation, largest size, decay] by our name of a tensor."""
  found = {}
  for key in GOLDEN.files:
    if key.startswith(f"{name}/model.decoder."):
      found[our_name(key.removeprefix(f"{name}/model.decoder."))] = GOLDEN[key]
  return found


@functools.cache
def initial(model: ModelConfig) -> dict[str, np.ndarray]:
  """Fresh parameters of a model, by name, [entries] each."""
  config = dataclasses.replace(config_of(opt_baselines.NAMES[0]), model=model)
  parameters = jax.jit(build_network(config).init)(jax.random.key(0))
  return {path: np.asarray(leaf, np.float64).ravel()
          for path, leaf in named_leaves(parameters).items()}


def initial_of(name: str) -> dict[str, np.ndarray]:
  """Fresh parameters of the baseline; the softmax, which has none, is left out of what is drawn."""
  return initial(dataclasses.replace(config_of(name).model, attention_softmax="plain",
                                     softmax_gamma=None))


def init_error(name: str) -> float:
  """Compares mean and standard deviation of every tensor, in units of their standard error."""
  theirs, ours = golden(name), initial_of(name)
  assert theirs.keys() == ours.keys()
  errors = []
  for path, (count, mean, std, _, _) in theirs.items():
    found = ours[path]
    if std == 0:
      np.testing.assert_array_equal(found, mean, err_msg=path)
      continue
    unit = std * (1 / count + 1 / found.size) ** 0.5
    # The error of a Gaussian's standard deviation, and more than that of what is drawn evenly.
    errors += [abs(found.mean() - mean) / unit, abs(found.std() - std) / (unit / 2 ** 0.5)]
  return float(max(errors))


def bound_error(name: str) -> float:
  """Compares the largest entry of the tensors that are drawn evenly, which have a bound."""
  theirs, ours = golden(name), initial_of(name)
  # Of a Gaussian the largest of so many is at 4 standard deviations and more, here at sqrt(3).
  evenly = [path for path, (_, _, std, largest, _) in theirs.items() if 0 < largest < 2 * std]
  assert len(evenly) == (9 if name == "gated_attention" else 8)
  return float(max(abs(np.abs(ours[path]).max() / theirs[path][3] - 1) for path in evenly))


def decay_error(name: str) -> float:
  """Compares the weight decay of every tensor."""
  theirs, config = golden(name), config_of(name)
  network = build_network(config)
  layout = lay_out(config.optim, network.roles, network.axes, network.shapes)
  decays = named_leaves(layout.decays)
  return float(max(abs(decays[path] * layout.weight_decay - row[4])
                   for path, row in theirs.items()))


def softmax_error() -> float:
  """Compares where the stretched softmax begins."""
  gamma = config_of("clipped_softmax").model.softmax_gamma
  assert gamma is not None
  return float(abs(gamma / GOLDEN["clipped_softmax/softmax"] - 1))


_SOURCE = ("Qualcomm-AI-research/outlier-free-transformers", "1e59744", "2026-11-27")

COMPARISONS = [
    *(Comparison(f"OPT-125m, {name.replace('_', ' ')}: {item}", *_SOURCE, measure,
                 functools.partial(error, name), tolerance)
      for name in opt_baselines.NAMES
      for item, measure, error, tolerance in (
          ("init", "largest difference of a tensor's mean or deviation, in standard errors",
           init_error, 4.0),
          ("init, bounds", "largest relative difference of a bound of what is drawn evenly",
           bound_error, 1e-3),
          ("decay", "largest difference of a tensor's weight decay", decay_error, 0.0))),
    Comparison("OPT-125m, clipped softmax: gamma", *_SOURCE, "relative difference", softmax_error,
               1e-9),
]
