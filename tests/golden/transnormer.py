"""Golden numbers of TransNormerLLM's released layers, in PyTorch, and what leads to them.

Made once, in an environment of its own; PyTorch is no dependency of this project:

  pip install torch==2.13.0 numpy
  git clone https://github.com/weigao266/TNL-MoE   (at commit 007576f)
  python tests/golden/transnormer.py --code=TNL-MoE/smoe/models/tnl --out=NPZ

Its classes Lrpe, GLU, NormLinearAttention and TransnormerDecoderLayer, OpenNLPLab's code, run in
float32 without the Triton kernels, the latter DEPTH times over with the decay of each layer. The
file holds for each of FORMS the output of every layer and the gradients of the sum of GRADIENT
times the last with respect to the input and the first layer's parameters.
"""

import argparse
import ast
import math
import types
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, HEADS, HIDDEN, DEPTH, ROWS, TOKENS = 16, 4, 24, 3, 2, 9
# Form -> which layers have LRPE.
FORMS = {"first": (True, False, False), "none": (False, False, False), "all": (True, True, True)}
MATRICES = {"query": (WIDTH, WIDTH), "key": (WIDTH, WIDTH), "value": (WIDTH, WIDTH),
            "gate": (WIDTH, WIDTH), "out": (WIDTH, WIDTH), "mlp_gate": (WIDTH, HIDDEN),
            "mlp_up": (WIDTH, HIDDEN), "mlp_down": (HIDDEN, WIDTH)}
_WANTED = ("linear_attention", "Lrpe", "GLU", "NormLinearAttention", "TransnormerDecoderLayer",
           "SimpleRMSNorm")


def inputs() -> dict[str, np.ndarray]:
  """x, GRADIENT, and the kernels (in, out) of every layer, float32."""
  rng = np.random.Generator(np.random.PCG64(0))
  found = {"x": rng.normal(size=(ROWS, TOKENS, WIDTH)),
           "gradient": rng.normal(size=(ROWS, TOKENS, WIDTH)),
           **{name: rng.normal(size=(DEPTH, *shape)) / math.sqrt(shape[0])
              for name, shape in MATRICES.items()}}
  return {name: array.astype(np.float32) for name, array in found.items()}


def _rearrange(x: Any, pattern: str, h: int = HEADS) -> Any:
  """The two patterns of einops.rearrange that the code has."""
  if pattern == "b n (h d) -> b h n d":
    return x.unflatten(-1, (h, -1)).transpose(1, 2)
  assert pattern == "b h n d -> b n (h d)", pattern
  return x.transpose(1, 2).flatten(2)


def _code(folder: Path) -> dict[str, Any]:
  import torch
  from torch import nn

  found: dict[str, Any] = {
      "torch": torch, "nn": nn, "math": math, "debug": False, "do_eval": True,
      "has_lightning_attention": False, "rearrange": _rearrange,
      "get_activation_fn": lambda name: {"silu": nn.functional.silu}[name]}
  for file in ("norm.py", "modeling_transnormer.py"):
    tree = ast.parse((folder / file).read_text())
    for node in ast.walk(tree):
      if isinstance(node, ast.FunctionDef):
        for argument in (*node.args.args, *node.args.kwonlyargs):
          argument.annotation = None
    chosen = [node for node in ast.walk(tree)
              if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name in _WANTED]
    slopes = [node for node in ast.walk(tree)
              if isinstance(node, ast.FunctionDef) and node.name == "_build_slope_tensor"]
    for node in slopes:
      node.decorator_list = []
    exec(compile(ast.Module([*chosen, *slopes], []), file, "exec"), found)
  found["get_norm_fn"] = lambda name: {"simplermsnorm": found["SimpleRMSNorm"]}[name]
  return found


def main() -> None:
  import torch

  parser = argparse.ArgumentParser()
  parser.add_argument("--code", type=Path, required=True)
  parser.add_argument("--out", type=Path, required=True)
  flags = parser.parse_args()
  code, given, kept = _code(flags.code), inputs(), {}
  slopes = code["_build_slope_tensor"](HEADS)
  kept["slopes_6"] = code["_build_slope_tensor"](6).reshape(-1).numpy()
  steps = torch.arange(TOKENS)
  distance = (steps[None] - steps[:, None]).float()
  mask = torch.where(distance <= 0, distance, -torch.inf)
  for form, turns in FORMS.items():
    x = torch.from_numpy(given["x"]).requires_grad_()
    y, layers = x, []
    for number in range(DEPTH):
      layer = code["TransnormerDecoderLayer"](types.SimpleNamespace(
          decoder_embed_dim=WIDTH, norm_type="simplermsnorm", glu_dim=HIDDEN, bias=False,
          hidden_dim=WIDTH, decoder_attention_heads=HEADS, linear_act_fun="silu",
          linear_use_lrpe=turns[number]))
      of = {name: torch.from_numpy(given[name][number].T) for name in MATRICES}
      with torch.no_grad():
        mixer, glu = layer.token_mixer, layer.channel_mixer
        mixer.qkvu_proj.weight.copy_(torch.cat([of[n] for n in ("query", "key", "value", "gate")]))
        for linear, name in ((mixer.out_proj, "out"), (glu.l1, "mlp_gate"), (glu.l2, "mlp_up"),
                             (glu.l3, "mlp_down")):
          linear.weight.copy_(of[name])
      rate = slopes * (1 - number / (DEPTH - 1) + 1e-5)
      y = layer.train()(y, attn_mask=mask, slope_rate=rate)[0]
      kept[f"{form}/y{number}"] = y.detach().numpy().copy()
      layers.append(layer)
    (y * torch.from_numpy(given["gradient"])).sum().backward()
    mixer = layers[0].token_mixer
    kept[f"{form}/x_gradient"] = x.grad.numpy()
    kept[f"{form}/qkvu_gradient"] = mixer.qkvu_proj.weight.grad.numpy().T.copy()
    kept[f"{form}/out_gradient"] = mixer.out_proj.weight.grad.numpy().T.copy()
    if turns[0]:
      kept[f"{form}/theta_gradient"] = mixer.lrpe.theta.grad.numpy().reshape(HEADS, -1)
  np.savez_compressed(flags.out, **kept)


if __name__ == "__main__":
  main()
