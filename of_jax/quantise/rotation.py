"""Rotates the residual stream of a model, which stays the same function. Enters: parameters and
resolved config. Leaves: both, of the rotated model. Computed in float64 on the host and rounded to
the type of the parameters; nothing is changed in place.

Each token x of the stream becomes x Q, Q of of_jax.quantise.hadamard. Whatever writes W to the
stream writes W Q, and whatever reads it by W reads by Q^T W; RMS-type norms and scalars commute
with Q. Gains a neuron are first moved into the linear map beside them. An outlier, one large
neuron, is then spread over all (Ashkboos et al. 2024, 2404.00456, Sec. 4, the first stage: hidden
units, queries, keys and values stay as they are).
"""

import dataclasses

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
    has_gains,
    last_reader,
    norms_read,
    part_of,
)
from of_jax.models.functional import Parameters
from of_jax.quantise.hadamard import Floats, check, rotation_of

# One number a layer, if any.
_ON_THE_STREAM = ("attention_skip", "mlp_skip", "attention_output_norm", "mlp_output_norm")
# Every part that is taken care of: one more could read or write the stream.
_MODEL = {"embedding": {"token", "position"}, "embedding_projection": {"entry", "exit"},
          "embedding_norm": {"scale"}, "stacks": None, "final_norm": {"scale", "bias"},
          "unembedding": {"kernel"}}
_BLOCK = {"attention": {"query", "key", "value", "out", "query_norm", "key_norm", "gate", "sink",
                        "theta"},
          "mlp": {"up", "gate", "down", "norm", "scale", "bias", "slope", "running_variance"},
          **dict.fromkeys((*READERS, *WRITERS, *_ON_THE_STREAM))}


def rotate(params: Parameters, config: Config) -> tuple[Parameters, Config]:
  """Rotates the stream of a model; tied embeddings are untied.

  Raises:
    UserError: a model that no rotated one equals, see of_jax.quantise.hadamard.check; or a norm
      with a gain of 0 beside an offset, where no bias could take the offset up.
  """
  check(config)
  model = config.model
  new: Parameters = jax.tree.map(lambda leaf: np.array(leaf, np.float64), params)
  check_known("model", new, _MODEL, "rotations")
  for name, stack in new["stacks"].items():
    check_known(f"stacks/{name}", stack, _BLOCK, "rotations")
  unties = model.tied_embeddings and not model.embedding_projection
  if unties:
    new["unembedding"] = {"kernel": new["embedding"]["token"].T.copy()}
  _move_gains(new)
  _rotate(new, rotation_of(model))
  dtype = jax.tree.leaves(params)[0].dtype
  return (jax.tree.map(lambda leaf: leaf.astype(dtype), new), resolve(dataclasses.replace(
      config, model=dataclasses.replace(
          model, tied_embeddings=model.tied_embeddings and not unties))))


def _move_gains(new: Parameters) -> None:
  """Moves gains off the stream: only offsets of norms remain a number a neuron, and they rotate."""
  for norm, readers in norms_read(new):
    # Where a norm gives the stream and is read by none, `check` has seen that it has no gains.
    if not has_gains(norm, readers):
      continue
    if "bias" in norm and all("bias" in reader for reader in readers):
      fold_offset(norm, readers)
    elif "bias" in norm:
      # (n gamma + beta) W = (n + beta / gamma) diag(gamma) W.
      gain, offset = norm["scale"], norm["bias"]
      if np.any((gain == 0) & (offset != 0)):
        raise UserError("a norm has a gain of 0 beside an offset, and the linear map behind it "
                        "has no bias to take it up; leave out --hadamard")
      norm["bias"] = np.divide(offset, gain, out=np.zeros_like(offset), where=gain != 0)
    fold_gain(norm, readers)
  fold_branch_gains(new)


def _rotate(new: Parameters, q_DxD: Floats) -> None:
  def write(array: np.ndarray) -> None:
    array[...] = array @ q_DxD

  def read(kernel: np.ndarray, axis: int) -> None:
    kernel[...] = np.moveaxis(np.tensordot(q_DxD, kernel, (0, axis)), 0, axis)

  if "embedding_projection" in new:
    write(new["embedding_projection"]["entry"])
  else:
    for table in new["embedding"].values():
      write(table)
  for stack in new["stacks"].values():
    # `norm` is of blocks whose halves read the same: it names all that read the stream.
    for path in READERS["norm"]:
      reader = part_of(stack, path)
      if reader is not None:
        read(reader["kernel"], 1)
    for path in WRITERS.values():
      for written in part_of(stack, path).values():
        write(written)
  read(last_reader(new)["kernel"], 0)
  for norm, _ in norms_read(new):
    if "bias" in norm:
      write(norm["bias"])
