"""Logits of models with configs that public repositories have, for tests/interop.

public_configs.json holds each config as it stands there, with the repository, the path and the
commit it was read from; `key` names the one meant where a file holds several. `cut` makes a small
model of it: sizes are shrunk, settings are not touched. Both sides draw the same weights from
here, so public_configs.npz holds logits alone. It needs torch 2.13.0 and transformers 5.24.0, which
of_jax does not use: in an environment of its own, with NumPy,

  python -m tests.golden.public_configs

writes the logits, and into the JSON which tensors transformers saves for the model, `#` for a
block's number.
"""

import json
import pathlib
import sys
import tempfile
import zlib
from typing import Any

import numpy as np

from tests.golden.foreign import safetensors

TOKENS = np.random.RandomState(0).randint(0, 64, (2, 24))
KEPT = slice(2, None, 3)  # Positions whose logits are kept, the last one too.
_FILE = pathlib.Path(__file__).with_suffix(".json")
CONFIGS: dict[str, dict[str, Any]] = {
    entry["name"]: entry for entry in json.loads(_FILE.read_text(encoding="utf-8"))}

_WINDOW = 7
_TABLES = ("embed_tokens.weight", "embed_positions.weight", "embed_in.weight", "wte.weight",
           "wpe.weight")
# Names of the sizes, in GPT-2's configs and in the others.
_WIDTH, _DEPTH, _HEADS = (
    ("n_embd", "hidden_size"), ("n_layer", "num_hidden_layers"), ("n_head", "num_attention_heads"))


def _name(config: dict[str, Any], names: tuple[str, ...]) -> str:
  return next(name for name in names if name in config)


def cut(config: dict[str, Any]) -> dict[str, Any]:
  """Shrinks a config's sizes: width to at most 256, blocks to at most 4.

  Queries to a key, the ratio of width to heads' neurons and of the MLP's to the width, and
  `vocab_size` modulo 64 stay. Windows become shorter than the sequence.
  """
  small = dict(config)
  width, heads = config[_name(config, _WIDTH)], config[_name(config, _HEADS)]
  shared = heads // config.get("num_key_value_heads", heads)
  small_heads = (2 if shared < 16 else 1) * shared if shared > 1 else 4
  neurons = config.get("head_dim") or width // heads
  small_neurons = 16 if small_heads * 16 <= 256 else 8
  if small_heads <= 4:
    small_neurons = 32
  small_width = 2 * round(width / (heads * neurons) * small_heads * small_neurons / 2)
  small[_name(config, _WIDTH)], small[_name(config, _HEADS)] = small_width, small_heads
  if "num_key_value_heads" in config:
    small["num_key_value_heads"] = small_heads // shared
  if config.get("head_dim"):
    small["head_dim"] = small_neurons
  for name in ("intermediate_size", "ffn_dim", "word_embed_proj_dim", "n_inner"):
    if config.get(name):
      small[name] = round(config[name] * small_width / width)
  small["vocab_size"] = 64 + config["vocab_size"] % 64
  if config.get("pad_token_id"):
    small["pad_token_id"] = config["pad_token_id"] % small["vocab_size"]
  if config.get("sliding_window"):
    small["sliding_window"] = _WINDOW
  _cut_depth(small)
  if isinstance(config.get("rope_scaling"), dict):
    small["rope_scaling"] = {
        name: value[:len(value) * small_neurons // neurons] if isinstance(value, list) else value
        for name, value in config["rope_scaling"].items()}
  return small


def _cut_depth(config: dict[str, Any]) -> None:
  """Cuts the blocks to the first four where their kinds differ, else to two."""
  name = _name(config, _DEPTH)
  depth, types = config[name], config.get("layer_types")
  small = min(depth, 4 if types and len(set(types)) > 1 else 2)
  if types:
    config["layer_types"] = types[:small]
    if len(set(types[:small])) < len(set(types)):
      config["layer_types"] = types[-small:]
  if "max_window_layers" in config:
    config["max_window_layers"] = round(config["max_window_layers"] * small / depth)
  config[name] = small


def shapes(name: str) -> dict[str, tuple[int, ...]]:
  """Tensors that transformers saves for the cut model, by name."""
  config = cut(CONFIGS[name]["config"])
  depth = config[_name(config, _DEPTH)]
  found = {}
  for tensor, shape in CONFIGS[name]["tensors"].items():
    for layer in range(depth if "#" in tensor else 1):
      found[tensor.replace("#", str(layer))] = tuple(shape)
  return found


def weights(name: str) -> dict[str, np.ndarray]:
  """The model's tensors: gains lie around 1, biases around 0, and none of them is either."""
  drawn = {}
  for tensor, shape in shapes(name).items():
    noise = np.random.RandomState(zlib.crc32(f"{name} {tensor}".encode())).randn(*shape)
    if len(shape) == 2:
      # Small inputs, so that the eps of norms counts.
      table = tensor.endswith(_TABLES)
      value = noise * (0.1 if table else 1.5 / np.sqrt(min(shape)))
    else:
      value = 0.3 * noise + tensor.endswith(".weight")
    drawn[tensor] = value.astype(np.float32)
  return drawn


def save_folder(folder: pathlib.Path, name: str) -> pathlib.Path:
  """Writes the cut model as its users have it, its weights in the type that the config names."""
  config = cut(CONFIGS[name]["config"])
  dtype = config.get("torch_dtype") or config.get("dtype") or "float32"
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "config.json").write_text(json.dumps(config))
  (folder / "model.safetensors").write_bytes(safetensors(
      weights(name), {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]))
  return folder


def _saved_shapes(config: dict[str, Any], folder: pathlib.Path) -> dict[str, list[int]]:
  """Asks transformers what a model of the config saves."""
  import re

  import transformers
  from safetensors import safe_open
  (folder / "config.json").write_text(json.dumps(config))
  read = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
  model = transformers.AutoModelForCausalLM.from_config(read, trust_remote_code=False)
  model.generation_config = transformers.GenerationConfig()
  model.save_pretrained(folder)
  with safe_open(folder / "model.safetensors", "np") as file:
    return {re.sub(r"\.0\.", ".#.", name, count=1): file.get_slice(name).get_shape()
            for name in file.keys() if not re.search(r"\.[1-9]\d*\.", name)}


def _logits(folder: pathlib.Path) -> np.ndarray:
  import torch
  import transformers
  model, report = transformers.AutoModelForCausalLM.from_pretrained(
      folder, trust_remote_code=False, dtype=torch.float32, attn_implementation="eager",
      output_loading_info=True)
  assert not any(report.values()), report
  with torch.no_grad():
    logits: np.ndarray = model.eval()(torch.from_numpy(TOKENS), use_cache=False).logits.numpy()
  return logits


def main() -> None:
  record = {}
  for name, entry in CONFIGS.items():
    with tempfile.TemporaryDirectory() as folder:
      entry["tensors"] = _saved_shapes(cut(entry["config"]), pathlib.Path(folder))
    with tempfile.TemporaryDirectory() as folder:
      record[name] = _logits(save_folder(pathlib.Path(folder), name))[:, KEPT]
    print(name, cut(entry["config"])["vocab_size"], np.abs(record[name]).max(), file=sys.stderr)
  lines = ",\n".join(json.dumps(entry) for entry in CONFIGS.values())
  _FILE.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
  np.savez_compressed(_FILE.with_suffix(".npz"), **record)


if __name__ == "__main__":
  main()
