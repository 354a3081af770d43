"""What a run's numbers depend on beside its config: versions, code, machine, data, sizes."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from of_jax.config import Config
from of_jax.data.folder import Described
from of_jax.models.functional import Network, named_leaves
from of_jax.objectives.tasks import task_of

_PACKAGES = ("of_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain",
             "tokenizers", "numpy")
# What a launcher says of itself, and of what the program cannot see.
_LAUNCH = {"launcher": "OF_JAX_LAUNCHER", "image": "OF_JAX_IMAGE", "topology": "OF_JAX_TOPOLOGY"}
# Dense bfloat16 peaks that the makers state, in flops a second; by jax's device_kind.
_PEAK_FLOPS = {
    "NVIDIA A100": 312e12, "NVIDIA H100": 989e12, "NVIDIA H200": 989e12, "TPU v4": 275e12,
    "TPU v5 lite": 197e12, "TPU v5e": 197e12, "TPU v5": 459e12, "TPU v5p": 459e12,
    "TPU v6 lite": 918e12, "TPU v6e": 918e12}


def describe(config: Config, mesh: Mesh, corpus: Described, network: Network) -> dict[str, Any]:
  """The contents of env.json."""
  return {
      **machine(),
      "mesh": dict(mesh.shape),
      "corpus": corpus.description,
      "corpus_sha256": corpus.corpus_sha256,
      "tokenizer_sha256": corpus.tokenizer_sha256,
      **count_parameters(network),
      "flops_per_token": task_of(config.model.kind).flops_per_token(config, network),
  }


def machine() -> dict[str, Any]:
  """Command, versions, code and devices: what any measurement depends on."""
  device = jax.devices()[0]
  return {
      "command": " ".join(sys.argv),
      "versions": {"python": platform.python_version(), **{
          name: _version(name) for name in _PACKAGES}},
      "git": _git(),
      "launch": {name: os.environ[variable] for name, variable in _LAUNCH.items()
                 if os.environ.get(variable)},
      "devices": {"platform": device.platform, "kind": device.device_kind,
                  "count": jax.device_count(), "processes": jax.process_count()},
  }


def count_parameters(network: Network) -> dict[str, int]:
  """Trained parameters in all, and without the embedding and unembedding tables."""
  shapes = named_leaves(network.trained(network.shapes))
  roles = named_leaves(network.trained(network.roles))
  tables = sum(shapes[name].size for name, role in roles.items()
               if role in ("embedding", "unembedding"))
  total = sum(shape.size for shape in shapes.values())
  return {"parameters": total, "parameters_without_embeddings": total - tables}


def peak_flops() -> float | None:
  """Dense bfloat16 flops a second of all devices, or None where the maker's figure is unknown."""
  kind = jax.devices()[0].device_kind
  known = [name for name in _PEAK_FLOPS if kind.startswith(name)]
  return _PEAK_FLOPS[max(known, key=len)] * jax.device_count() if known else None


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def uncommitted() -> str:
  """What `git diff HEAD` says of the clone that runs: files that git tracks, as a patch."""
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
