"""Golden numbers of the authors' Unified Normalization, in PyTorch, and what leads to them.

Made once, in an environment of its own; PyTorch is no dependency of this project:

  pip install torch==2.13.0 numpy
  git clone https://github.com/hikvision-research/Unified-Normalization   (at commit 0ce9bf2)
  python tests/golden/unified_norm.py --code=FILE --out=tests/golden/unified_norm.npz

FILE is its unified_normalization.py, the one of image_classification/models.
`UN1d` runs STEPS training steps in each of SETTINGS. The file holds output, gradients and state
after the steps KEPT (`filter/9/x_gradient`), and last the output in evaluation
(`filter/evaluated`).
"""

import argparse
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, STEPS, KEPT = 6, 14, (1, 4, 5, 9, 12, 14)
# Name -> arguments, the number of steps done before, and the steps whose batch stands out.
SETTINGS: dict[str, tuple[dict[str, Any], int, tuple[int, ...]]] = {
    "plain": ({"warmup_iters": 6}, 0, ()),
    "filter": ({"warmup_iters": 3, "outlier_filtration": True}, 0, (9, 12)),
    "late": ({"warmup_iters": 5, "outlier_filtration": True, "momentum": 0.8}, 1000, (1009,)),
}


def parameters() -> tuple[np.ndarray, np.ndarray]:
  """gamma and beta."""
  return (np.linspace(0.5, 2, WIDTH, dtype=np.float32),
          np.linspace(-1, 1, WIDTH, dtype=np.float32))


def batch(setting: str, step: int) -> tuple[np.ndarray, np.ndarray]:
  """x and dL/dy of a step, [3, 5, WIDTH]."""
  rng = np.random.Generator(np.random.PCG64([step, list(SETTINGS).index(setting)]))
  x, gradient = rng.normal(size=(2, 3, 5, WIDTH))
  x = x * np.linspace(0.5, 4, WIDTH) + 0.3
  if step in SETTINGS[setting][2]:
    x[..., 2] *= 100
  return x.astype(np.float32), gradient.astype(np.float32)


def main() -> None:
  import torch

  parser = argparse.ArgumentParser()
  parser.add_argument("--code", type=Path, required=True)
  parser.add_argument("--out", type=Path, required=True)
  flags = parser.parse_args()
  spec = importlib.util.spec_from_file_location("unified_normalization", flags.code)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  # A name that torch 2.13 no longer has.
  saved = property(lambda function: function.saved_tensors)
  module.UN2dFunction.saved_variables = saved
  module.UN2dFunction._backward_cls.saved_variables = saved
  kept: dict[str, np.ndarray] = {}
  for name, (arguments, done, _) in SETTINGS.items():
    norm = module.UN1d(WIDTH, **arguments)
    norm.iters.fill_(done)
    with torch.no_grad():
      for parameter, value in zip((norm.weight, norm.bias), parameters()):
        parameter.copy_(torch.from_numpy(value))
    for step in range(1, STEPS + 1):
      inputs, gradient = map(torch.from_numpy, batch(name, done + step))
      x = inputs.requires_grad_()
      norm.zero_grad()
      y = norm.train()(x)
      y.backward(gradient)
      if step in KEPT:
        for what, value in {
            "y": y, "x_gradient": x.grad, "scale_gradient": norm.weight.grad,
            "square": norm.running_var, "gradient": norm.ema_gz, "squares": norm.buffer_x2,
            "gradients": norm.buffer_gz, "skipped": norm.skip_counter}.items():
          kept[f"{name}/{step}/{what}"] = value.detach().numpy().copy()
    kept[f"{name}/evaluated"] = norm.eval()(torch.from_numpy(batch(name, 0)[0])).detach().numpy()
  np.savez_compressed(flags.out, **kept)


if __name__ == "__main__":
  main()
