"""Records what a run's numbers depend on beside its config: versions, code, machine, data, sizes.

Enters: the devices and the clone that run, a config with its corpus and network. Leaves: env.json.
"""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from of_jax.config import Config, gpu_attention
from of_jax.cost_model import chips
from of_jax.data.folder import Described
from of_jax.models.functional import Network, named_leaves
from of_jax.objectives.tasks import task_of

_PACKAGES = ("of_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain",
             "tokenizers", "numpy")
# Names in env.json of what a launcher says of itself, and of what the program cannot see.
_LAUNCH = {"launcher": "OF_JAX_LAUNCHER", "image": "OF_JAX_IMAGE", "topology": "OF_JAX_TOPOLOGY"}


# In env.json: settings of JAX, from its environment variables, that change numbers.
SETTINGS = "jax_settings"
_SETTINGS = ("jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl",
             "jax_threefry_partitionable", "jax_numpy_dtype_promotion", "jax_disable_jit")


def describe(config: Config, mesh: Mesh, corpus: Described, network: Network) -> dict[str, Any]:
  """Collects the contents of env.json, an object for JSON."""
  return {
      **machine(),
      "mesh": dict(mesh.shape),
      "corpus": corpus.description,
      "corpus_sha256": corpus.corpus_sha256,
      "corpus_text": None if corpus.text is None else dict(corpus.text),
      "tokenizer_sha256": corpus.tokenizer_sha256,
      "special_tokens": {side: getattr(corpus, f"{side}_token", None) for side in ("end", "begin")},
      **count_parameters(network),
      "flops_per_token": task_of(config.model.kind).flops_per_token(config, network),
      "attention_on_gpu": attention_on_gpu(config),
  }


def attention_on_gpu(config: Config) -> str | None:
  """Says how attention is computed where the devices are GPUs; None where they are not."""
  device = jax.devices()[0]
  choice = (gpu_attention.choice_of(config, device.device_kind) if device.platform == "gpu"
            else None)
  return None if choice is None else choice.text()


def machine() -> dict[str, Any]:
  """Describes command, versions, code and devices: what any measurement depends on."""
  device = jax.devices()[0]
  return {
      "command": " ".join(sys.argv),
      "versions": {"python": platform.python_version(), **{
          name: _version(name) for name in _PACKAGES}},
      "git": _git(),
      "launch": {name: os.environ[variable] for name, variable in _LAUNCH.items()
                 if os.environ.get(variable)},
      SETTINGS: {name: getattr(jax.config, name) for name in _SETTINGS},
      "devices": {"platform": device.platform, "kind": device.device_kind,
                  "count": jax.device_count(), "processes": jax.process_count()},
  }


def count_parameters(network: Network) -> dict[str, int]:
  """Counts trained parameters, in all and without the embedding and unembedding tables."""
  shapes = named_leaves(network.trained(network.shapes))
  roles = named_leaves(network.trained(network.roles))
  tables = sum(shapes[name].size for name, role in roles.items()
               if role in ("embedding", "unembedding"))
  total = sum(shape.size for shape in shapes.values())
  return {"parameters": total, "parameters_without_embeddings": total - tables}


def peak_flops() -> float | None:
  """Dense bfloat16 flops a second of all devices, or None where the maker's figure is unknown."""
  each = chips.peak_flops(jax.devices()[0].device_kind)
  return each * jax.device_count() if each else None


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def uncommitted() -> str:
  """The changes that `git diff HEAD` finds in the clone that runs, as a patch; "" in no clone."""
  try:
    return _run_git("diff", "HEAD", "--binary", "--", ":/")
  except (OSError, subprocess.SubprocessError):
    return ""


def _git() -> dict[str, Any]:
  """Commit and dirty flag of the clone that runs; None where it is no clone."""
  try:
    return {"commit": _run_git("rev-parse", "HEAD").strip(),
            "dirty": bool(_run_git("status", "--porcelain").strip())}
  except (OSError, subprocess.SubprocessError):
    return {"commit": None, "dirty": None}


def _run_git(*arguments: str) -> str:
  return subprocess.run(["git", *arguments], cwd=Path(__file__).parent, check=True, text=True,
                        errors="replace", capture_output=True, timeout=10).stdout
