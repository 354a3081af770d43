"""Compiles the train step for TPUs or GPUs that are not there, and says what it would cost.

libtpu holds the real TPU compiler and runs without a TPU, jax's CUDA plugin that of GPUs. Enters: a
config and the name of a slice, or of hosts of GPUs. Leaves: bytes a chip, flops, bytes moved,
collectives and an estimate of the time.
"""

import contextlib
import functools
import math
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from of_jax.config import Config, gpu_attention
from of_jax.cost_model import hlo_groups
from of_jax.cost_model.accelerator import GIB, Accelerator
from of_jax.cost_model.gpus import Gpu
from of_jax.cost_model.topology import parse_topology
from of_jax.errors import UserError

_FORMULA = ("sum over operations of trips x max(matrix flops / peak{}, bytes in HBM / bandwidth), "
            "plus bytes that a {} sends in ring collectives / bandwidth of {}; nothing overlaps, "
            "vector arithmetic costs nothing")
FORMULA = _FORMULA.format("", "chip", "its links one way")
GPU_FORMULA = _FORMULA.format(
    ", of float32 that of TF32", "GPU", "NVLink one way, or for groups that span hosts of the "
    "network cards of a group's GPUs in a host, if that is less")
# Kernels would be tried on the GPU, which is not there.
_GPU_OPTIONS = {"xla_gpu_autotune_level": "0"}


def devices(topology: str) -> list[Any]:
  """Describes the chips, which programs can be compiled for and not run on."""
  chip, shape = parse_topology(topology)
  from jax.experimental import topologies
  options: dict[str, Any]
  if isinstance(chip, Gpu):
    options = {"platform": "cuda", "topology_name": "", "target_config": chip.target(),
               "topology": f"1x{shape[0]}x{shape[1]}"}
  else:
    # libtpu would look for the machine it runs on, and complain that it is no TPU's host.
    os.environ.update({"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost",
                       "TPU_WORKER_ID": "0", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"})
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")
    options = {"platform": "tpu", "topology_name": topology}
    if math.prod(shape) == 1:
      options["chips_per_host_bounds"] = (1, 1, 1)
  with _captured() as log:
    try:
      described = topologies.get_topology_desc(**options)
    except Exception as error:
      lines = str(error).splitlines() + log
      raise UserError(f"--topology={topology}: the compiler refuses it: {lines[0]}") from error
  return list(described.devices)


def compile_step(config: Config, topology: str) -> dict[str, Any]:
  """Compiles the config's measured step for a slice, or for hosts of GPUs.

  Args:
    config: resolved. Its mesh must take every chip; -1 takes those that are left.
    topology: as `v5e:4x4` or `h100:2x8`.

  Returns:
    topology, chips, mesh, bytes_per_chip, hbm_bytes, fits, flops, matrix_flops, model_flops (6 N D
    and attention), bytes_accessed, collectives (kind -> count, bytes), predicted_seconds and
    predicted_seconds_formula, predicted_mfu, cycles (the TPU compiler's own estimate of what runs
    on the chip, collectives apart), statistics (see `statistics_of`), warnings, uncounted. Of GPUs
    also attention (its form) and collectives_by_link (`nvlink`, and `network` where a group spans
    hosts, -> kind -> count, bytes, bytes sent). Flops and model_flops are of all chips, the rest is
    of one. Where the program does not fit the memory, the TPU compiler leaves none to read: what it
    would say is None.

  Raises:
    UserError: a slice that does not exist, a mesh that it does not have, a batch that the mesh
      does not divide, a state that a chip's memory does not hold.
  """
  import jax

  from of_jax.train.sharding import make_mesh
  chip, _ = parse_topology(topology)
  mesh = make_mesh(config, devices(topology))
  # Before the mesh is set: on devices that are not there, no array can be made.
  is_gpu = isinstance(chip, Gpu)
  lowered, model_flops, statistics = _lower(
      config, mesh, f"a {'GPU' if is_gpu else 'chip'} of {topology}", chip)
  report: dict[str, Any] = {
      "topology": topology, "chips": mesh.size, "mesh": dict(mesh.shape), "bytes_per_chip": None,
      "hbm_bytes": chip.hbm_bytes, "fits": False, "flops": None, "matrix_flops": None,
      "model_flops": model_flops, "bytes_accessed": None, "collectives": None,
      "predicted_seconds": None,
      "predicted_seconds_formula": GPU_FORMULA if is_gpu else FORMULA,
      "predicted_mfu": None,
      "cycles": None, "statistics": statistics, "warnings": [], "uncounted": []}
  if isinstance(chip, Gpu):
    choice = gpu_attention.choice_of(config, chip.device_kind)
    report["attention"] = None if choice is None else choice.text()
  with _captured() as log:
    try:
      compiled = lowered.compile(_GPU_OPTIONS if is_gpu else None)
    except jax.errors.JaxRuntimeError as error:
      over = _over_memory(str(error))
      if over is None:
        raise
      return {**report, **over}
  memory = compiled.memory_analysis()
  hosts = tuple(device.process_index for device in mesh.devices.flat)
  return {**report, **_judge(compiled.as_text(), chip, hosts, model_flops, config), **_fits(
      memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
      + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes, chip),
      "warnings": _warnings(log)}


def _fits(needed: int, chip: Accelerator) -> dict[str, Any]:
  return {"bytes_per_chip": needed, "fits": needed <= chip.hbm_bytes}


def _over_memory(message: str) -> dict[str, Any] | None:
  """Reads what a program needs and a chip has off the error of a compiler that found no room."""
  used = re.search(r"Used ([\d.]+)([KMG]) of ([\d.]+)([KMG]) hbm", message)
  if used is None:
    return None
  units = {"K": 2 ** 10, "M": 2 ** 20, "G": GIB}
  needs, has = (round(float(number) * units[unit])
                for number, unit in (used.groups()[:2], used.groups()[2:]))
  return {"bytes_per_chip": needs, "hbm_bytes": has, "fits": False}


def _judge(text: str, chip: Accelerator, hosts: tuple[int, ...], model_flops: int,
           config: Config | None = None) -> dict[str, Any]:
  """Reads a program's cost off its text, with what only the config says of its kernels.

  Args:
    hosts: the host of every chip.
  """
  from of_jax.cost_model import hlo
  program = hlo.read(text, *([functools.partial(_kernel_flops, config)] if config else []))
  chips = len(hosts)
  seconds = sum(op.trips * max(chip.matrix_seconds(op.matrix_flops, op.wide_flops),
                               op.bytes / chip.hbm_bandwidth) for op in program.operations)
  seconds += sum(c.trips * chip.send_seconds(
      c.sent, hlo_groups.most_in_host(c.groups, hosts), hlo_groups.spans_hosts(c.groups, hosts))
      for c in program.collectives)
  return {
      "flops": program.flops * chips, "matrix_flops": program.matrix_flops * chips,
      "bytes_accessed": program.bytes, "collectives": program.by_kind(),
      **({"collectives_by_link": _by_link(program.collectives, hosts)}
         if isinstance(chip, Gpu) else {}),
      # A program whose loops could not be counted has no estimate.
      "predicted_seconds": None if program.uncounted else seconds,
      "predicted_mfu": (None if program.uncounted
                        else model_flops / (seconds * chips * chip.flops)),
      "cycles": program.cycles, "uncounted": list(program.uncounted)}


def _by_link(collectives: Sequence[Any], hosts: tuple[int, ...]) -> dict[str, Any]:
  """Sums collectives: link -> kind -> `count` of runs, `bytes` of arrays, bytes `sent` by a GPU."""
  links: dict[str, Any] = {"nvlink": {}, "network": {}}
  for collective in collectives:
    link = "network" if hlo_groups.spans_hosts(collective.groups, hosts) else "nvlink"
    total = links[link].setdefault(collective.kind, {"count": 0, "bytes": 0, "sent": 0.0})
    total["count"] += collective.trips
    total["bytes"] += collective.trips * collective.bytes
    total["sent"] += collective.trips * collective.sent
  return links


def _kernel_flops(config: Config, kernel: str, shapes: list[tuple[int, ...]]
                  ) -> tuple[int, int] | None:
  """See hlo.KernelFlops."""
  from of_jax.models import gpu_attention as gpu_kernels
  from of_jax.models import splash
  from of_jax.telemetry import one_pass
  if kernel == one_pass.KERNEL:
    return one_pass.flops(shapes[0], config.model.compute_dtype)
  products = splash.product_flops(kernel, shapes, config.model.attention_window)
  if products is None:
    products = gpu_kernels.product_flops(kernel, shapes)
  return None if products is None else (products, products)


def statistics_of(config: Config, network: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
  """Counts what the measured step sums over tokens of activations, whatever the mesh.

  Args:
    config: resolved; network: of it.
    batch: arrays or their shapes.

  Returns:
    site -> `layers`; `vectors` as long as the stream is wide and single `numbers`, of one layer;
    and 4 `bytes` a number, of all layers. Sums by group of tokens, first and others, are two.
  """
  import jax

  from of_jax.telemetry.observe import Telemetry
  telemetry = Telemetry.of(config.telemetry, config.model.kind)

  def forward(params: Any, batch: Mapping[str, Any]) -> Any:
    return network.stream(params, batch["inputs"], batch.get("documents"),
                          observe=telemetry.observer(batch["weights"]))[2]

  found: dict[str, Any] = {}
  for site, statistics in jax.eval_shape(forward, network.shapes, dict(batch)).items():
    leaves = jax.tree.leaves(statistics)
    layers, width = leaves[0].shape[0], config.model.width
    whole = sum(leaf.size for leaf in leaves) // layers
    vectors = sum(leaf.size for leaf in leaves if leaf.shape[-1] == width) // (layers * width)
    found[site] = {"layers": layers, "vectors": vectors, "numbers": whole - vectors * width,
                   "bytes": 4 * whole * layers}
  return found


def _lower(config: Config, mesh: Any, where: str, chip: Accelerator
           ) -> tuple[Any, int, dict[str, Any]]:
  """The measured step, traced and partitioned for `mesh`, the flops of the model's formula, and
  `statistics_of` it."""
  import jax
  from jax.sharding import NamedSharding, PartitionSpec

  from of_jax.models import partition
  from of_jax.objectives.tasks import task_of
  from of_jax.train import memory
  from of_jax.train.trainer import make_trainer
  trainer = make_trainer(config, mesh)

  def laid_out(shape: Any, sharding: Any) -> Any:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

  state = jax.tree.map(laid_out, jax.eval_shape(trainer.init, jax.random.key(0)),
                       trainer.shardings)
  memory.check(where, memory.bytes_of_a_device(state, trainer.shardings), chip.hbm_bytes)
  task = task_of(config.model.kind)
  batch = {name: laid_out(part, NamedSharding(mesh, partition.batch_spec(part.ndim)))
           for name, part in task.batch(config).items()}
  key = laid_out(jax.eval_shape(lambda: jax.random.key(0)),
                 NamedSharding(mesh, PartitionSpec()))
  # The abstract mesh, because on devices that are not there nothing can be computed on the way.
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    lowered = trainer.step_measured.lower(state, batch, key)
  flops = task.flops_per_token(config, trainer.network)
  tokens = config.train.batch_size * config.train.sequence_length
  # Without the mesh, whose devices are no part of what is summed over it.
  return lowered, flops * tokens, statistics_of(config, trainer.network, {
      name: jax.ShapeDtypeStruct(part.shape, part.dtype) for name, part in batch.items()})


def _warnings(log: list[str]) -> list[str]:
  """Warnings and errors of the compiler's log, each once."""
  found: dict[str, None] = {}
  for line in log:
    message = re.match(r"[WE]\d{4} \S+ +\d+ [\w.]+:\d+\] (.*)", line)
    if message or "rematerialization" in line.lower():
      found[(message.group(1) if message else line.strip())[:400]] = None
  return list(found)


@contextlib.contextmanager
def _captured() -> Iterator[list[str]]:
  """Captures lines that libraries write to the process's standard error while the block runs."""
  lines: list[str] = []
  sys.stderr.flush()
  kept = os.dup(2)
  with tempfile.TemporaryFile() as file:
    os.dup2(file.fileno(), 2)
    try:
      yield lines
    finally:
      os.dup2(kept, 2)
      os.close(kept)
      file.seek(0)
      lines += file.read().decode(errors="replace").splitlines()
