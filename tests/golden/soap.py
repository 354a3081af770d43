"""Numbers of the authors' SOAP, for tests/optim/test_soap.py. Writes soap.npz beside this file.

It needs PyTorch and the file soap.py of github.com/nikhilvyas/SOAP at commit a1e5535, neither of
which of_jax uses: in an environment of its own, with NumPy and torch 2.13.0,

  python tests/golden/soap.py FOLDER_OF_THEIR_FILE

`after/K` holds parameter, moments, factors and bases after the authors' step K, counted from 0,
their first call, and `gradient/K` what that step was given. `long/*` are parameters after 100
calls, and `long_noise/*` by how much, relative to the largest entry, they differ when every
gradient is off by about 1e-7 of itself: how far the algorithm magnifies rounding.
"""

import pathlib
import sys
from collections.abc import Callable

import numpy as np

# Unequal decays, and an eps and a rate that are seen in every digit.
SETTINGS = {"lr": 0.05, "betas": (0.9, 0.97), "shampoo_beta": 0.8, "eps": 1e-3,
            "weight_decay": 0.1, "precondition_frequency": 10, "max_precond_dim": 12}
STEPS = (0, 1, 9, 10, 11, 30)
KEPT = {k for step in STEPS for k in (step - 1, step)}
# 14 is above max_precond_dim. The last two are merged, to [12, 10] and [12, 3, 5].
SHAPES = {"square": (8, 8), "wide": (6, 10), "tall": (10, 6), "one_sided": (14, 8),
          "vector": (5,), "merged": (3, 4, 2, 5), "merged_cube": (6, 2, 3, 5)}
MERGED = ("merged", "merged_cube")
LONG = {"long16": 16, "long32": 32}
LONG_STEPS = 100

Gradient = Callable[[int, np.ndarray], np.ndarray]


def start(name: str) -> np.ndarray:
  """The parameter before the first call."""
  return _random(name, "start").randn(*_shape(name)).astype(np.float32)


def gradient(name: str, step: int, w: np.ndarray) -> np.ndarray:
  """Noise, and a part that pulls the parameter to 0, more in some directions than in others."""
  random = _random(name, f"gradient {step}")
  pull = 0.01 * w * np.linspace(0.1, 1, w.shape[0]).reshape(-1, *[1] * (w.ndim - 1))
  return (pull + 0.01 * random.randn(*w.shape)).astype(np.float32)


def _shape(name: str) -> tuple[int, ...]:
  return SHAPES[name] if name in SHAPES else (LONG[name], LONG[name])


def _random(name: str, use: str) -> np.random.RandomState:
  # RandomState's numbers are the same in every version of NumPy, as those of its successor are not.
  return np.random.RandomState(sum(map(ord, name + use)) + 7919 * len(use))


def _run(optimizer_class: type, name: str, steps: int, gradient: Gradient,
         settings: dict, record: dict[str, np.ndarray] | None = None) -> np.ndarray:
  import torch
  w = torch.nn.Parameter(torch.from_numpy(start(name)))
  optimizer = optimizer_class([w], **settings, merge_dims=name in MERGED)
  for step in range(steps):
    w.grad = torch.from_numpy(gradient(step, w.detach().numpy().copy()))
    if record is not None and step in STEPS:
      record[f"gradient/{step}/{name}"] = w.grad.numpy().copy()
    optimizer.step()
    if record is not None and step in KEPT:
      record.update(_state(f"after/{step}/{name}", w, optimizer.state[w]))
  return w.detach().numpy().copy()


def _state(prefix: str, w: object, state: dict) -> dict[str, np.ndarray]:
  arrays = {f"{prefix}/w": w.detach().numpy().copy()}
  if "exp_avg" in state:
    arrays[f"{prefix}/mu"] = state["exp_avg"].numpy().copy()
    arrays[f"{prefix}/nu"] = state["exp_avg_sq"].numpy().copy()
    for key, title in (("GG", "factor"), ("Q", "basis")):
      arrays.update({f"{prefix}/{title}{i}": matrix.numpy().copy()
                     for i, matrix in enumerate(state[key]) if len(matrix)})
  return arrays


def main(folder: str) -> None:
  sys.path.insert(0, folder)  # Before this file's own folder, for theirs has the same name.
  from soap import SOAP

  record: dict[str, np.ndarray] = {}
  for name in SHAPES:
    _run(SOAP, name, max(STEPS) + 1, lambda step, w: gradient(name, step, w), SETTINGS, record)
  for name in LONG:
    settings = {**SETTINGS, "max_precond_dim": 10_000}
    final = _run(SOAP, name, LONG_STEPS, lambda step, w: gradient(name, step, w), settings)
    noise = _random(name, "noise")

    def noisy(step: int, w: np.ndarray) -> np.ndarray:
      g = gradient(name, step, w)
      return (g * (1 + 1e-7 * noise.randn(*g.shape))).astype(np.float32)

    other = _run(SOAP, name, LONG_STEPS, noisy, settings)
    record[f"long/{name}"] = final
    record[f"long_noise/{name}"] = np.abs(other - final).max() / np.abs(final).max()
    print(name, "differs under noise by", record[f"long_noise/{name}"])
  np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **record)


if __name__ == "__main__":
  main(sys.argv[1])
