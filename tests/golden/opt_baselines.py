"""Numbers of Bondarenko et al.'s OPT-125m before its first step. Writes opt_baselines.npz.

It needs PyTorch, transformers and github.com/Qualcomm-AI-research/outlier-free-transformers at
commit 1e59744, none of which of_jax uses: in an environment of its own, with torch 2.13.0,
transformers 5.24.0, PyYAML and NumPy,

  python tests/golden/opt_baselines.py FOLDER_OF_THEIR_REPOSITORY

The flags are those of their scripts/opt_125m_NAME.sh; the replacement of attention and the groups
of the optimiser are run as run_clm.py has them. `NAME/TENSOR` holds, of one tensor of all layers
together, [entries, mean, standard deviation, largest size, weight decay]; `NAME/softmax` the end of
the stretched softmax, NaN where it is plain. `NAME/gate` is the standard deviation of the gates of
random tokens that a LayerNorm left.
"""

import pathlib
import re
import shlex
import sys
import textwrap
from typing import Any

import numpy as np

NAMES = ("vanilla", "clipped_softmax", "gated_attention")


def _arguments(folder: pathlib.Path, name: str) -> Any:
  """Reads the flags of a script with their own parser."""
  from quantization.utils import BaseEnumOptions

  # Python's flags listed all their names until 3.10.
  BaseEnumOptions.list_names = classmethod(lambda cls: list(cls.__members__))
  from transformers_language.args import parse_args
  script = (folder / f"scripts/opt_125m_{name}.sh").read_text()
  words = shlex.split(script.replace("\\\n", " "), comments=True)
  sys.argv = words[words.index("run_clm.py"):]
  return parse_args()


def _slice(folder: pathlib.Path, start: str, end: str) -> str:
  """Takes the lines of run_clm.py between two of its comments."""
  source = (folder / "run_clm.py").read_text()
  assert source.count(start) == 1 and source.count(end) == 1, "another version of their file"
  return textwrap.dedent("    " + source[source.index(start):source.index(end)])


def _model(folder: pathlib.Path, arguments: Any) -> Any:
  import torch
  import yaml
  from transformers import OPTConfig, OPTForCausalLM
  from transformers_language.models import opt_attention, softmax
  torch.manual_seed(arguments.seed)
  config = OPTConfig()
  for key, value in yaml.safe_load((folder / arguments.config_path).read_text()).items():
    setattr(config, key, value)
  model = OPTForCausalLM(config)
  for layer in model.model.decoder.layers:
    layer.self_attn.is_decoder = True  # As the library had it in their day.
  exec(_slice(folder, "# >> replace self-attention", "# We resize the embeddings"),
       {**vars(opt_attention), **vars(softmax), "model": model, "args": arguments})
  return model


def _decays(folder: pathlib.Path, model: Any, arguments: Any) -> dict[int, float]:
  import torch
  scope: dict[str, Any] = {"torch": torch, "model": model, "args": arguments}
  exec(_slice(folder, "# Split weights in two groups", "# Scheduler and math"), scope)
  return {id(p): group["weight_decay"] for group in scope["optimizer"].param_groups
          for p in group["params"]}


def _gates(model: Any) -> float:
  import torch
  attention = model.model.decoder.layers[0].self_attn
  hidden = torch.nn.functional.layer_norm(torch.randn(8, 64, attention.embed_dim),
                                          (attention.embed_dim,))
  with torch.no_grad():
    attention(hidden)
  return float(attention.last_gate_all_probs.std())


def main(folder: pathlib.Path) -> None:
  sys.path.insert(0, str(folder))
  found: dict[str, Any] = {}
  for name in NAMES:
    arguments = _arguments(folder, name)
    model = _model(folder, arguments)
    decays = _decays(folder, model, arguments)
    tensors: dict[str, list[Any]] = {}
    for path, p in model.named_parameters():
      tensors.setdefault(re.sub(r"\.\d+\.", ".", path), []).append(p)
    for path, parts in tensors.items():
      flat = np.concatenate([p.detach().numpy().ravel() for p in parts]).astype(np.float64)
      (decay,) = {decays[id(p)] for p in parts}
      found[f"{name}/{path}"] = [flat.size, flat.mean(), flat.std(), np.abs(flat).max(), decay]
    attention = model.model.decoder.layers[0].self_attn
    found[f"{name}/softmax"] = getattr(attention.softmax_fn, "keywords", {}).get("gamma", np.nan)
    if name == "gated_attention":
      found[f"{name}/gate"] = _gates(model)
  np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **found)
  for key, value in found.items():
    print(key, value)


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
