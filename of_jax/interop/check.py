"""Comparison with `transformers`, where it is installed, to see in which block an error enters.

Enters: a Hugging Face folder and our model of it. Leaves: the difference at each place of the
stream. The library is imported here alone, and by name: nothing else needs it or PyTorch.
"""

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from of_jax.errors import UserError
from of_jax.interop.pretrained import Pretrained

# Relative to the largest entry: a hundred times what rounding was seen to make in float32.
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Difference:
  """Difference of two arrays that should be equal.

  Attributes:
    place: where in the model, in words.
    largest: absolute difference.
    relative: that over the largest entry of theirs.
  """

  place: str
  largest: float
  relative: float


def our_stream(model: Pretrained, tokens_BxT: np.ndarray) -> list[np.ndarray]:
  """Inputs of each block and of the unembedding, and the logits, by our model."""

  def observe(site: str, x: jax.Array, first: jax.Array | None) -> dict[str, jax.Array] | None:
    return {"x": x} if site in ("resid_pre", "final") else None

  @jax.jit
  def run(params: Any) -> Any:
    return model.model.apply(params, jnp.asarray(tokens_BxT), observe=observe)

  with jax.default_matmul_precision("highest"):
    logits, sites = jax.device_get(run(model.params))
  return [*sites["resid_pre"]["x"], *sites["final"]["x"], logits]


def their_stream(folder: Path, tokens_BxT: np.ndarray) -> list[np.ndarray]:
  """Inputs and logits by `transformers` in float32, its own code and none that the folder brings.

  Raises:
    UserError: the library or PyTorch is missing, or it cannot load the folder.
  """
  try:
    torch = importlib.import_module("torch")
    transformers = importlib.import_module("transformers")
  except ImportError as error:
    raise UserError(f"--check compares with transformers, and {error.name} is not installed: "
                    "pip install transformers torch") from None
  try:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=False, use_safetensors=True, attn_implementation="eager",
        dtype=torch.float32).eval()
  except Exception as error:  # Whatever it raises is about the folder.
    raise UserError(f"{folder}: transformers cannot load it: "
                    f"{' '.join(str(error).split())[:200]}") from None
  body = model.base_model
  body = getattr(body, "decoder", body)
  seen: list[np.ndarray] = []

  def keep(module: Any, inputs: Any, keywords: Any) -> None:
    x = inputs[0] if inputs else keywords["hidden_states"]
    seen.append(x.detach().float().numpy().reshape(*tokens_BxT.shape, -1))

  for module in (*(body.h if hasattr(body, "h") else body.layers), model.get_output_embeddings()):
    module.register_forward_pre_hook(keep, with_kwargs=True)
  with torch.no_grad():
    logits = model(torch.from_numpy(tokens_BxT.astype(np.int64)), use_cache=False).logits
  return [*seen, logits.float().numpy()]


def compare(ours: list[np.ndarray], theirs: list[np.ndarray]) -> list[Difference]:
  """Differences by place; a place whose widths differ, as behind a projection, is left out."""
  places = [f"stream entering block {i + 1}" for i in range(len(ours) - 2)]
  places += ["what the unembedding reads", "logits"]
  found = []
  for place, a, b in zip(places, ours, theirs, strict=True):
    if a.shape == b.shape:
      largest = float(np.abs(a.astype(np.float64) - b).max())
      found.append(Difference(place, largest, largest / max(float(np.abs(b).max()), 1e-30)))
  return found


def verdict(differences: list[Difference]) -> str:
  """Says in a sentence where the first difference above TOLERANCE is."""
  for before, difference in zip([None, *differences], differences):
    if not difference.relative <= TOLERANCE:  # NaN too.
      start = f"after: {before.place}; " if before else ""
      return f"the error enters {start}before: {difference.place}"
  return f"equal to {TOLERANCE:g} of the largest entry everywhere"
