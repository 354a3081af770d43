"""Exact conversions of a model into another that computes the same function.

Enters: a dictionary of parameters and the resolved config of the model that they belong to.
Leaves: both for the converted model. Computed in float64 on the host and rounded to the type of
the parameters, so the functions agree to rounding. Nothing is changed in place.

Pre-LN -> Pre-RMSNorm -> Pre-CRMSNorm (Jiang et al. 2023, 2305.14858): LayerNorm(x) is the RMSNorm
of x minus its mean, so nothing is lost when whatever writes to the stream is centred over the
stream's neurons. A centred vector is known from all its entries but the last.

Only `model.block=pre` is known: there, the norms alone read the stream. Dropout puts a mean back
into a centred stream, so a model with dropout stays the same in evaluation alone.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from of_jax.config import Config, resolve
from of_jax.errors import UserError
from of_jax.models.folding import (
    READERS,
    WRITERS,
    check_known,
    fold_branch_gains,
    fold_gain,
    fold_offset,
    norms_read,
    readers,
)
from of_jax.models.functional import Parameters

# Every part that the functions below take care of: one more could read or write the stream.
_MODEL = {"embedding": {"token", "position"}, "stacks": None, "final_norm": None,
          "unembedding": {"kernel"}}
_BLOCK = {"attention": {"query", "key", "value", "out", "query_norm", "key_norm"},
          "mlp": {"up", "gate", "down"}, **dict.fromkeys(("attention_norm", "mlp_norm", *WRITERS))}
# Largest mean over the neurons that a centred writer may have, relative to its largest entry.
_CENTRED = 1e-5


def to_rmsnorm(params: Parameters, config: Config) -> tuple[Parameters, Config]:
  """Converts a Pre-LN model into the Pre-RMSNorm model that equals it, its embeddings untied.

  Raises:
    UserError: another norm or block; no final norm, so that the unembedding reads the mean; or
      an offset of a norm that no bias follows which could take it up (`model.linear_bias`).
  """
  new = _start(params, config, norms=("layer",))
  _fold_offsets(new)
  fold_branch_gains(new)
  for writer in _writers(new):
    writer -= writer.mean(-1, keepdims=True)
  for norm, _ in norms_read(new):
    del norm["bias"]
  return _finish(new, params, config, norm="rms")


def to_crmsnorm(params: Parameters, config: Config) -> tuple[Parameters, Config]:
  """Converts a Pre-RMSNorm model with a centred stream to Pre-CRMSNorm, one neuron narrower.

  The gains of its norms go into the next linear maps. Heads and MLP keep their sizes.

  Raises:
    UserError: another norm or block; no final norm; or a stream that is not centred, as that of
      a model from `to_rmsnorm` is.
  """
  new = _start(params, config, norms=("rms", "srms"))
  fold_branch_gains(new)
  for writer in _writers(new):
    if np.abs(writer.mean(-1)).max() > _CENTRED * np.abs(writer).max():
      raise UserError("the stream has a mean, which only the neuron left out could hold: what "
                      "becomes a Pre-CRMSNorm model is a model that to_rmsnorm has made")
  _fold_gains(new)
  _drop_norms(new)
  _drop_last_neuron(new)
  return _finish(new, params, config, norm="crms", width=config.model.width - 1)


def fold_norms(params: Parameters, config: Config) -> tuple[Parameters, Config]:
  """Moves every gain and offset of a model's norms into the next linear map.

  `rms` and `ss` are left without parameters, as `srms`; the others keep gains of 1 and offsets
  of 0. Norms of queries and keys stay as they are: no linear map follows them.

  Raises:
    UserError: another block than `pre`, or an offset of a norm that no bias follows which could
      take it up (`model.linear_bias`).
  """
  new = _start(params, config)
  _fold_offsets(new)
  _fold_gains(new)
  norm = config.model.norm
  if norm in ("rms", "ss"):
    _drop_norms(new)
    norm = "srms"
  return _finish(new, params, config, norm=norm)


def _start(params: Parameters, config: Config, norms: tuple[str, ...] = ()) -> Parameters:
  """Copies the parameters in float64, the unembedding a matrix of its own where a norm feeds it.

  Args:
    params, config: the model.
    norms: the norms that are accepted, and then a final norm is asked for; none: all are.
  """
  model = config.model
  if model.block != "pre":
    raise UserError(f"config.model.block={model.block}: conversions know pre alone, where only "
                    "norms read the stream")
  if norms and model.norm not in norms:
    raise UserError(f"config.model.norm={model.norm}: this conversion starts from "
                    f"{' or '.join(norms)}")
  if model.final_norm and model.final_norm_kind != model.norm:
    raise UserError(f"config.model.final_norm_kind={model.final_norm_kind}: conversions know "
                    f"models of one norm alone, here {model.norm}")
  if norms and not model.final_norm:
    raise UserError("config.model.final_norm=False: the unembedding reads the stream itself, so no "
                    "model with another stream is the same")
  new: Parameters = jax.tree.map(lambda leaf: np.array(leaf, np.float64), params)
  check_known("model", new, _MODEL, "conversions")
  for name, stack in new["stacks"].items():
    check_known(f"stacks/{name}", stack, _BLOCK, "conversions")
  if model.tied_embeddings and model.final_norm:
    new["unembedding"] = {"kernel": new["embedding"]["token"].T.copy()}
  return new


def _finish(new: Parameters, params: Parameters, config: Config, **fields: Any
            ) -> tuple[Parameters, Config]:
  """Rounds to the parameters' type again, with the config of the new model."""
  dtype = jax.tree.leaves(params)[0].dtype
  tied = config.model.tied_embeddings and "unembedding" not in new
  model = dataclasses.replace(config.model, tied_embeddings=tied, final_norm_kind=None,
                              **fields)
  return (jax.tree.map(lambda leaf: leaf.astype(dtype), new),
          resolve(dataclasses.replace(config, model=model)))


def _writers(new: Parameters) -> list[np.ndarray]:
  """Arrays that are added to the stream, whose neurons are the last axis of each."""
  found = list(new["embedding"].values())
  for stack in new["stacks"].values():
    for a, b in WRITERS.values():
      found += stack[a][b].values()
  return found


def _fold_offsets(new: Parameters) -> None:
  """Folds offsets of norms into biases: b <- b + beta W in each reader, beta <- 0."""
  for norm, read_by in norms_read(new):
    if "bias" not in norm or not norm["bias"].any():
      continue
    for reader in read_by:
      if "bias" not in reader:
        raise UserError(
            "a norm's offset is not zero, and the linear map behind it has no bias to take it up: "
            + ("the unembedding never has one" if reader is new.get("unembedding") else
               "it needs model.linear_bias=true"))
    fold_offset(norm, read_by)


def _fold_gains(new: Parameters) -> None:
  for norm, read_by in norms_read(new):
    if "scale" in norm:
      fold_gain(norm, read_by)


def _drop_norms(new: Parameters) -> None:
  new.pop("final_norm", None)
  for stack in new["stacks"].values():
    for name in READERS:
      stack.pop(name, None)


def _drop_last_neuron(new: Parameters) -> None:
  """Leaves out the stream's last neuron, which is minus the sum of the others."""
  def drop_input(reader: Parameters, axis: int) -> None:
    others, last = np.split(reader["kernel"], [-1], axis)
    reader["kernel"] = others - last

  drop_input(new["unembedding"], 0)
  new["embedding"] = {name: table[..., :-1] for name, table in new["embedding"].items()}
  for stack in new["stacks"].values():
    for name in ("attention_norm", "mlp_norm"):
      for reader in readers(stack, name):
        drop_input(reader, 1)
    for name, (a, b) in WRITERS.items():
      stack[a][b] = {part: written[..., :-1] for part, written in stack[a][b].items()}
      if "value" in stack.get(name, {}) and stack[name]["value"].ndim == 2:
        stack[name]["value"] = stack[name]["value"][:, :-1]
