"""Readers and writers of the residual stream, and exact moves of gains and offsets between them.

Enters: a model's parameters as NumPy arrays, which are changed in place. Conversions and rotations
are made of these steps.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from of_jax.errors import UserError
from of_jax.models.functional import Parameters

_ATTENTION = (("attention", "query"), ("attention", "key"), ("attention", "value"),
              ("attention", "gate", "linear"))
_MLP = (("mlp", "up"), ("mlp", "gate"))
# The norms of a block, and the linear maps that read what each gives.
READERS = {"attention_norm": _ATTENTION, "mlp_norm": _MLP, "norm": (*_ATTENTION, *_MLP)}
# The gains of a block, and the linear map that each stands behind.
WRITERS = {"attention_gain": ("attention", "out"), "mlp_gain": ("mlp", "down")}


def check_known(place: str, part: Parameters, known: Mapping[str, set[str] | None], what: str
                ) -> None:
  """Raises UserError for a part of a model that `what` does not know: it could read the stream.

  Args:
    known: name -> the names within, None for all that there are.
  """
  for name, children in part.items():
    allowed = known.get(name)
    unknown = [name] if name not in known else [
        f"{name}/{child}" for child in sorted(children.keys() - allowed)] if allowed else []
    if unknown:
      raise UserError(f"{place}/{unknown[0]}: a part of the model that {what} do not know")


def part_of(stack: Parameters, path: tuple[str, ...]) -> Any:
  """Part of a stack at a path, None where nothing stands there."""
  found: Any = stack
  for name in path:
    found = found.get(name) if isinstance(found, dict) else None
  return found


def readers(stack: Parameters, norm: str) -> list[Parameters]:
  """Linear maps of a stack that read a norm's output."""
  return [part for path in READERS[norm] if (part := part_of(stack, path)) is not None]


def norms_read(params: Parameters) -> list[tuple[Parameters, list[Parameters]]]:
  """Norms with parameters whose output linear maps read, with those maps."""
  found = [(stack[name], readers(stack, name)) for stack in params["stacks"].values()
           for name in READERS if name in stack]
  if "final_norm" in params:
    found.append((params["final_norm"], [last_reader(params)]))
  return found


def last_reader(params: Parameters) -> Parameters:
  """Linear map by which the stream leaves the model; tied tables have none of their own."""
  if "embedding_projection" in params:
    return {"kernel": params["embedding_projection"]["exit"]}
  reader: Parameters = params["unembedding"]
  return reader


def fold_offset(norm: Parameters, read_by: list[Parameters]) -> None:
  """Folds an offset: b <- b + beta W in each reader of a norm, all with a bias; beta <- 0."""
  offset = norm["bias"]
  for reader in read_by:
    # [.., in] and [.., in, out..] -> [.., out..]; before `in` there may be an axis of layers.
    kernel = reader["kernel"]
    reader["bias"] += (aligned(offset, kernel) * kernel).sum(offset.ndim - 1)
  offset[...] = 0


def fold_gain(norm: Parameters, read_by: list[Parameters]) -> None:
  """Folds a gain: W <- diag(gamma) W in each reader of a norm, gamma <- 1."""
  # `ss` has one gain a layer, the others one a neuron.
  gain = norm["scale"].reshape(*norm["scale"].shape[:_stacked(read_by)], -1)
  for reader in read_by:
    reader["kernel"] *= aligned(gain, reader["kernel"])
  norm["scale"][...] = 1


def has_gains(norm: Parameters, read_by: list[Parameters]) -> bool:
  """Tells whether a norm has a gain a neuron."""
  return "scale" in norm and norm["scale"].ndim > _stacked(read_by)


def _stacked(read_by: list[Parameters]) -> int:
  """Number of axes of layers, 1 or 0: stacked kernels have at least three axes."""
  return min(1, int(read_by[0]["kernel"].ndim) - 2)


def fold_branch_gains(params: Parameters) -> None:
  """Folds gains of a branch, one a channel, into the map before it; one for all channels stays."""
  for stack in params["stacks"].values():
    for name, path in WRITERS.items():
      gain = stack.get(name, {}).get("value")
      if gain is not None and gain.ndim == 2:
        for written in part_of(stack, path).values():
          written *= gain.reshape(len(gain), *[1] * (written.ndim - 2), -1)
        gain[...] = 1


def aligned(vector: np.ndarray, kernel: np.ndarray) -> np.ndarray:
  """Reshapes [.., in] with axes of 1 behind, to multiply a kernel [.., in, out..]."""
  return vector.reshape(*vector.shape, *[1] * (kernel.ndim - vector.ndim))
