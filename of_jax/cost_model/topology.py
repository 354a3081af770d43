"""TPU slices and hosts of GPUs by name, as in v5p:4x4x8 and h100:16x8.

Enters: text. Leaves: the chip, and the shape of the torus or the numbers of hosts and of GPUs in
each. Imports no jax.
"""

import importlib.util
import math
import re

from of_jax.cost_model.accelerator import Accelerator
from of_jax.cost_model.chips import CHIPS
from of_jax.cost_model.gpus import GPUS, GPUS_PER_HOST, MOST_HOSTS
from of_jax.errors import UserError

# What each compiler is part of, as Python imports it, and the extra that installs it.
_COMPILERS = {"tpu": (("libtpu",), "tpu"),
              "gpu": (("jax_cuda12_plugin", "nvidia.cudnn", "nvidia.cuda_nvcc"), "gpu-compiler")}


def parse_topology(topology: str) -> tuple[Accelerator, tuple[int, ...]]:
  """Reads a name: `v5p:4x4x8` -> the chip and its torus, `h100:16x8` -> the GPU, (hosts, GPUs).

  Raises:
    UserError: no such kind, or no such slice; the line names the nearest that exists.
  """
  kind, _, text = topology.partition(":")
  if kind in GPUS:
    return GPUS[kind], _hosts(topology, kind, text)
  if kind not in CHIPS:
    raise UserError(f"--topology={topology}: no kind of chip that is known here; there are "
                    f"{', '.join([*CHIPS, *GPUS])}, as in v5p:4x4x8 or h100:16x8")
  chip = CHIPS[kind]
  if not re.fullmatch(r"\d+(x\d+)*", text):
    raise UserError(f"--topology={topology}: no shape; {kind} is given as in "
                    f"{kind}:{_shape_text(chip.slices[4])}")
  shape = tuple(map(int, text.split("x")))
  if shape not in chip.slices:
    chips = max(1, math.prod(shape))
    nearest = min(chip.slices, key=lambda s: (sorted(s) != sorted(shape), abs(math.log(
        math.prod(s) / chips)), sum(s)))
    raise UserError(f"--topology={topology}: no such slice; the nearest is "
                    f"{kind}:{_shape_text(nearest)} of {math.prod(nearest)} chips")
  return chip, shape


def platform(topology: str) -> str:
  """Tells `gpu` from `tpu` by the kind of chip that a name begins with."""
  return "gpu" if topology.partition(":")[0] in GPUS else "tpu"


def check_compiler(platform: str) -> None:
  """Raises UserError unless the compiler for `tpu` or `gpu` is installed; imports none of it."""
  modules, extra = _COMPILERS[platform]
  missing = [name for name in modules if not _is_installed(name)]
  if missing:
    raise UserError(f"the {platform.upper()} compiler is not installed (no {', '.join(missing)}); "
                    f"pip install -e '.[{extra}]'")


def _hosts(topology: str, kind: str, text: str) -> tuple[int, int]:
  """Reads `8` or `16x8`: hosts and GPUs in each."""
  if not re.fullmatch(r"\d+(x\d+)?", text):
    raise UserError(f"--topology={topology}: no numbers of hosts and GPUs; {kind} is given as in "
                    f"{kind}:8 or {kind}:16x8, 16 hosts of 8 GPUs")
  *hosts_text, gpus_text = text.split("x")
  hosts, gpus = int(hosts_text[0]) if hosts_text else 1, int(gpus_text)
  if gpus > GPUS_PER_HOST and not hosts_text:
    raise UserError(f"--topology={topology}: a host has at most {GPUS_PER_HOST} GPUs; give hosts "
                    f"too, as in {kind}:{min(MOST_HOSTS, -(-gpus // GPUS_PER_HOST))}x"
                    f"{GPUS_PER_HOST}")
  if not (1 <= gpus <= GPUS_PER_HOST and 1 <= hosts <= MOST_HOSTS):
    nearest = (f"{kind}:{min(max(hosts, 1), MOST_HOSTS)}x{min(max(gpus, 1), GPUS_PER_HOST)}"
               if hosts_text else f"{kind}:1")
    raise UserError(f"--topology={topology}: from 1 to {MOST_HOSTS} hosts of 1 to {GPUS_PER_HOST} "
                    f"GPUs can be described; the nearest is {nearest}")
  return hosts, gpus


def _is_installed(module: str) -> bool:
  try:
    return importlib.util.find_spec(module) is not None
  except ModuleNotFoundError:  # Of a part of a package that is not there itself.
    return False


def _shape_text(shape: tuple[int, ...]) -> str:
  return "x".join(map(str, shape))
