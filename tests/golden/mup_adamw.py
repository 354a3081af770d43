"""Numbers of the authors' muP AdamW over widths and roles. Writes mup_adamw.npz beside this file.

It needs PyTorch and the package mup of github.com/microsoft/mup at commit 1981497, neither of which
of_jax uses: in an environment of its own, with torch 2.13.0, PyYAML and NumPy,

  python tests/golden/mup_adamw.py

A model of an embedding, a hidden matrix, gains and biases of a norm, and their MuReadout, at the
base width and at multiples of it. `WIDTH/ROLE` holds what the function uses of a weight, (in, out):
the readout's over the number by which its layer divides what it reads; `before`, after each of
STEPS steps, and `decayed`, after one step whose gradient is 0. Only a corner is kept.
"""

import pathlib
from typing import Any

import numpy as np

BASE_WIDTH = 16
WIDTHS = (16, 32, 64, 256)
STEPS = 5
CORNER = 3
SETTINGS = {"learning_rate": 0.02, "weight_decay": 0.3, "b1": 0.9, "b2": 0.97, "eps": 1e-10}
VOCABULARY, CLASSES = 7, 5
ROLES = ("embedding", "hidden", "norm", "bias", "unembedding")


def shapes(width: int) -> dict[str, tuple[int, ...]]:
  """Shapes of the weights, (in, out), by role."""
  return {"embedding": (VOCABULARY, width), "hidden": (width, width), "norm": (width,),
          "bias": (width,), "unembedding": (width, CLASSES)}


def start(width: int, role: str) -> np.ndarray:
  """The weight that the function uses, before the first step."""
  return _random(role, width).randn(*shapes(width)[role]).astype(np.float32)


def gradient(width: int, role: str, step: int) -> np.ndarray:
  """The gradient of that weight at a step, from 1; all of one size, so that eps is not seen."""
  noise = _random(role, 1000 * step + width).randn(*shapes(width)[role])
  return (noise + np.sign(noise)).astype(np.float32)


def _random(role: str, number: int) -> np.random.RandomState:
  return np.random.RandomState(7919 * ROLES.index(role) + number)


def _model(width: int) -> Any:
  import mup
  from torch import nn

  class Model(nn.Module):
    def __init__(self, width: int) -> None:
      super().__init__()
      self.embedding = nn.Embedding(VOCABULARY, width)
      self.hidden = nn.Linear(width, width, bias=False)
      self.norm = nn.LayerNorm(width)
      self.unembedding = mup.MuReadout(width, CLASSES, bias=False)

  model = Model(width)
  mup.set_base_shapes(model, Model(BASE_WIDTH), delta=Model(2 * BASE_WIDTH), do_assert=False)
  return model


def _run(width: int, gradients: list[Any]) -> list[dict[str, np.ndarray]]:
  """Weights that the function uses after each step, by role; `gradients` are functions of it."""
  import mup
  import torch
  model = _model(width)
  divisor = model.unembedding.width_mult()
  weights = {"embedding": model.embedding.weight, "hidden": model.hidden.weight,
             "norm": model.norm.weight, "bias": model.norm.bias,
             "unembedding": model.unembedding.weight}

  def theirs(role: str, x: np.ndarray, factor: float) -> Any:
    x = x.T if role in ("hidden", "unembedding") else x
    return torch.from_numpy(np.ascontiguousarray(x * (factor if role == "unembedding" else 1),
                                                 dtype=np.float32))

  def ours(role: str) -> np.ndarray:
    x = weights[role].detach().numpy() / (divisor if role == "unembedding" else 1)
    return (x.T if role in ("hidden", "unembedding") else x).copy()

  with torch.no_grad():
    for role, weight in weights.items():
      weight.copy_(theirs(role, start(width, role), divisor))
  optimizer = mup.MuAdamW(
      model.parameters(), lr=SETTINGS["learning_rate"], weight_decay=SETTINGS["weight_decay"],
      betas=(SETTINGS["b1"], SETTINGS["b2"]), eps=SETTINGS["eps"])
  found = []
  for gradient_of in gradients:
    for role, weight in weights.items():
      weight.grad = theirs(role, gradient_of(role), 1 / divisor)
    optimizer.step()
    found.append({role: ours(role) for role in ROLES})
  return found


def corner(weight: np.ndarray) -> np.ndarray:
  """The part that is kept."""
  return weight[tuple(slice(CORNER) for _ in weight.shape)]


def main() -> None:
  found = {}
  for width in WIDTHS:
    steps = _run(width, [
        lambda role, step=step: gradient(width, role, step) for step in range(1, STEPS + 1)])
    decayed = _run(width, [lambda role: np.zeros(shapes(width)[role], np.float32)])[0]
    for role in ROLES:
      found[f"{width}/{role}"] = np.stack([corner(step[role]) for step in steps])
      found[f"{width}/{role}/decayed"] = corner(decayed[role])
      print(width, role, "decay of a step",
            np.mean(1 - found[f"{width}/{role}/decayed"] / corner(start(width, role))))
  np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **found)


if __name__ == "__main__":
  main()
