"""Looks for accelerators without jax, so that libtpu keeps silent where there is none."""

import importlib.util
import os
from collections.abc import MutableMapping
from pathlib import Path

# What a machine with an accelerator has: devices of TPUs, of NVIDIA's and AMD's GPUs.
_DEVICES = ("accel*", "vfio/[0-9]*", "nvidia[0-9]*", "nvidiactl", "dxg", "kfd")
_GOOGLE = "0x1ae0"
_OF_TPUS = ("TPU_NAME", "TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES", "TPU_ACCELERATOR_TYPE",
            "CLOUD_TPU_TASK_ID", "TPU_SKIP_MDS_QUERY")


def found(root: Path = Path("/"), environment: MutableMapping[str, str] = os.environ) -> bool:
  """Says whether anything here speaks of a TPU or a GPU."""
  vendors = (root / "sys/bus/pci/devices").glob("*/vendor")
  return (any(name in environment for name in _OF_TPUS)
          or any(any((root / "dev").glob(pattern)) for pattern in _DEVICES)
          or any(vendor.read_text().strip() == _GOOGLE for vendor in vendors))


def keep_libtpu_silent(root: Path = Path("/"),
                       environment: MutableMapping[str, str] = os.environ) -> None:
  """Has jax use the CPU where libtpu is installed and there is neither TPU nor GPU.

  jax would else start libtpu, whose compiler `compile_topology` needs, and libtpu complain of the
  machine. Read when jax is imported; a JAX_PLATFORMS that is set stays.
  """
  if ("JAX_PLATFORMS" not in environment and importlib.util.find_spec("libtpu") is not None
      and not found(root, environment)):
    environment["JAX_PLATFORMS"] = "cpu"
