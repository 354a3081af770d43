"""Golden numbers of the authors' first-order optimisers, in PyTorch, and what leads to them.

Made once, in an environment of its own; PyTorch is no dependency of this project:

  pip install torch==2.13.0 numpy adamp==0.3.0
  git clone https://github.com/KellerJordan/Muon   (at commit 857d1ad)
  python tests/golden/first_order.py --muon=Muon/muon.py --out=tests/golden/first_order.npz

AdamW is torch.optim.AdamW, AdamP and SGDP are those of the package adamp, Muon is the functions
`muon_update` and `zeropower_via_newtonschulz5`, the latter with its cast to bfloat16 turned into
one to float32. The file holds the weights after 1, 10 and 100 steps (`adamp/tall/100`), Muon's
momentum as it enters the orthogonalisation and what leaves it (`muon/tall/10/before`, `/after`).

The weights are (in, out) here and (out, in) in PyTorch, so they are transposed on the way in and
out. The gradients are functions of the weights and the step that pass AdamP's test by channel
(`wide`), as a whole (`tall`) and not at all (`square`), each by more than rounding can close.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

STEPS = 100
KEPT = (1, 10, 100)
SHAPES = {"square": (12, 12), "wide": (6, 20), "tall": (20, 6), "vector": (9,)}

# What both sides are called with; names of arguments are those of this project.
SETTINGS: dict[str, dict[str, Any]] = {
    "adamw": dict(learning_rate=3e-3, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1),
    "adamp": dict(learning_rate=3e-3, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1, delta=0.1,
                  wd_ratio=0.1, nesterov=False),
    "adamp_nesterov": dict(learning_rate=3e-3, b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.3,
                           delta=0.1, wd_ratio=0.3, nesterov=True),
    "sgdp": dict(learning_rate=3e-3, momentum=0.9, dampening=0.1, weight_decay=0.01,
                 nesterov=False, eps=1e-8, delta=0.1, wd_ratio=0.1),
    "sgdp_nesterov": dict(learning_rate=3e-3, momentum=0.8, dampening=0.0, weight_decay=0.05,
                          nesterov=True, eps=1e-8, delta=0.1, wd_ratio=0.1),
}
MUON_MOMENTUM = 0.95


def parameters() -> dict[str, np.ndarray]:
  """The weights before the first step, float32, by leaf."""
  rng = np.random.Generator(np.random.PCG64(0))
  return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def gradient(name: str, weight: np.ndarray, step: int) -> np.ndarray:
  """The float32 gradient of a leaf at a weight, for step 1 and on; computed in float64."""
  rng = np.random.Generator(np.random.PCG64([step, list(SHAPES).index(name)]))
  w, noise = weight.astype(np.float64), rng.normal(size=weight.shape)
  if name == "wide":  # Orthogonal to each column.
    noise -= w * np.sum(noise * w, 0) / np.sum(w * w, 0)
  elif name == "tall":  # Orthogonal to the whole.
    noise -= w * np.sum(noise * w) / np.sum(w * w)
  else:
    noise += 0.5 * w
  return noise.astype(np.float32)


def _weights(make: Callable[[Any], Any], found: dict[str, np.ndarray], label: str) -> None:
  import torch
  for name, start in parameters().items():
    weight = torch.nn.Parameter(torch.from_numpy(start.T.copy()))
    optimizer = make([weight])
    for step in range(1, STEPS + 1):
      now = weight.detach().numpy().T
      weight.grad = torch.from_numpy(gradient(name, now, step).T.copy())
      optimizer.step()
      if step in KEPT:
        found[f"{label}/{name}/{step}"] = weight.detach().numpy().T.copy()


def _muon(source: str, found: dict[str, np.ndarray]) -> None:
  import torch
  assert source.count("G.bfloat16()") == 1, "another version of the authors' file"
  # Only the two functions: what follows them is about several machines.
  body = source[source.index("def zeropower"):source.index("class Muon")]
  scope: dict[str, Any] = {"torch": torch}
  exec(body.replace("G.bfloat16()", "G.float()"), scope)
  enters = []
  orthogonalize = scope["zeropower_via_newtonschulz5"]

  def spy(update: Any, steps: int) -> Any:
    enters.append(update.numpy().T.copy())
    return orthogonalize(update, steps)

  scope["zeropower_via_newtonschulz5"] = spy
  for name, start in parameters().items():
    if start.ndim < 2:
      continue
    momentum = torch.zeros(start.T.shape)
    for step in range(1, 11):
      g = torch.from_numpy(gradient(name, start, step).T.copy())
      update = scope["muon_update"](g, momentum, MUON_MOMENTUM)
      if step in (1, 2, 10):
        found[f"muon/{name}/{step}/before"] = enters[-1]
        found[f"muon/{name}/{step}/after"] = update.numpy().T.copy()


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--muon", type=Path, required=True, help="the authors' muon.py")
  parser.add_argument("--out", type=Path, required=True)
  arguments = parser.parse_args()
  import torch
  from adamp import SGDP, AdamP
  torch.set_num_threads(1)
  found: dict[str, np.ndarray] = {}
  for label, s in SETTINGS.items():
    common = dict(lr=s["learning_rate"], weight_decay=s["weight_decay"], eps=s["eps"])
    kinds = {"adamw": torch.optim.AdamW, "adamp": AdamP, "sgdp": SGDP}
    kind = kinds[label.partition("_")[0]]
    if "b1" in s:
      common["betas"] = (s["b1"], s["b2"])
    common |= {name: s[name] for name in ("momentum", "dampening", "nesterov", "delta", "wd_ratio")
               if name in s}
    _weights(lambda weights: kind(weights, **common), found, label)
  _muon(arguments.muon.read_text(), found)
  np.savez_compressed(arguments.out, **found)
  print(arguments.out, len(found), "arrays,", arguments.out.stat().st_size, "bytes")


if __name__ == "__main__":
  main()
