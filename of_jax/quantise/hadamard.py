"""Rotation matrix of a model's residual stream, and which models it leaves the same.

What blocks, norms and gates let through is a trait of theirs, see of_jax.config.traits. Imports no
jax, so that a model that does not stay the same is named before it is loaded.
"""

import numpy as np
import numpy.typing as npt

from of_jax.config import Config, ModelConfig, traits
from of_jax.errors import UserError

Floats = npt.NDArray[np.float64]

SEED = 0


def check(config: Config) -> None:
  """Raises UserError, naming the field, unless some rotated model is the same as this one.

  What acts on the stream must be linear, or a norm that knows no neuron from another: a gain a
  neuron behind the norm has to go into the linear maps that read it, and where the norm gives the
  stream itself there are none.
  """
  model = config.model

  def refuse(field: str, why: str) -> None:
    raise UserError(f"config.model.{field}={getattr(model, field)}: {why}, so no model with a "
                    "rotated stream is the same; leave out --hadamard")

  block = traits.block(model.block)
  if block.norm_outputs is None:
    refuse("block", "reads or writes the stream neuron by neuron")
  for field, kind, gives_stream in _norms(model):
    norm = traits.norm(kind)
    if norm.rotation is None:
      refuse(field, "acts neuron by neuron")
    if gives_stream and norm.gain_per_neuron:
      where = f"in block {model.block} " if field == "norm" else ""
      refuse(field, f"{where}its gains act on the stream neuron by neuron")
  if traits.gate(model.attention_gate).reads != "maps":
    refuse("attention_gate", "each head reads its own neurons of the stream")
  for field in ("attention_keys", "attention_values"):
    if getattr(model, field) == "input":
      refuse(field, "attention reads the stream neuron by neuron")
  if model.sigma_reparam != "none":
    refuse("sigma_reparam", "the spectral norms of matrices are estimated, and gains would change "
           "them")
  if model.beta_per_channel and model.skip_gain is not None:
    refuse("skip_gain", "skips have a gain a channel")
  if model.beta_per_channel and block.norm_outputs == "gain":
    refuse("beta_per_channel", f"in block {model.block} it acts behind a norm")


def _norms(model: ModelConfig) -> list[tuple[str, str, bool]]:
  """Norms of the stream: (the field that says so, the norm, whether the stream is its output)."""
  found, block = [], traits.block(model.block)
  if block.norms != "none":
    found.append(("norm", model.norm, block.norm_outputs != "maps"))
  if model.embedding_norm:
    found.append(("embedding_norm", model.norm, True))
  if model.first_attention_norm:
    found.append(("first_attention_norm", "layer", False))
  if model.final_norm:
    found.append(("final_norm_kind", str(model.final_norm_kind), False))
  return found


def rotation_of(model: ModelConfig) -> Floats:
  """The matrix for a model that `check` accepts."""
  keeps_mean = any(traits.norm(kind).rotation == "keeps_mean" for _, kind, _ in _norms(model))
  return rotation(model.width, keeps_mean)


def rotation(width: int, keeps_mean: bool = False) -> Floats:
  """Orthogonal Q, [width, width]; the stream x becomes x Q.

  Q = S (H kron R). H is Sylvester's Hadamard matrix of the largest power of two that divides the
  width, R an orthogonal matrix of the odd rest, and S has random signs on its diagonal; R, of
  Haar's measure, and S are drawn from SEED. A width that is a power of two has entries of one
  size, 1 / sqrt(width). This is the randomised Hadamard matrix of QuaRot (Ashkboos et al. 2024,
  2404.00456, Sec. 4), but for R, where theirs is a Hadamard matrix too.

  With `keeps_mean`, Q (1 - 2 v v^T / v^T v) instead, v = u - Q^T u, u = 1 / sqrt(width): a
  reflection that makes Q u = u, so that every token keeps its mean over the neurons and what
  LayerNorm subtracts is the same.
  """
  rng = np.random.default_rng(SEED)
  block = width & -width
  signs = rng.choice([-1.0, 1.0], width)
  q, r = np.linalg.qr(rng.standard_normal((width // block, width // block)))
  matrix: Floats = signs[:, None] * np.kron(sylvester(block), q * np.sign(np.diag(r)))
  if not keeps_mean:
    return matrix
  u = np.full(width, width ** -0.5)
  v = u - matrix.T @ u
  if v @ v < 1e-12:  # It keeps the mean as it is.
    return matrix
  reflected: Floats = matrix - 2 * np.outer(matrix @ v, v) / (v @ v)
  return reflected


def sylvester(size: int) -> Floats:
  """Sylvester's Hadamard matrix over sqrt(size), a power of two: orthogonal and symmetric."""
  # Here, since it is slow to import and most commands do without.
  from scipy.linalg import hadamard
  scaled: Floats = hadamard(size, dtype=np.float64) / np.sqrt(size)
  return scaled
