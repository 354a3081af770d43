"""Pages of the size ladder on accelerators that are not there: one of TPUs, one of GPUs.

Enters: what of_jax.train.ahead_of_time says of each size. Leaves: a page of
Markdown, from that alone.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from of_jax import config as config_lib
from of_jax.config import Config, presets
from of_jax.cost_model import topology
from of_jax.cost_model.accelerator import GIB

COMMAND = "python -m experiments.compile_topology --table=docs/tpu_ladder.md,docs/gpu_ladder.md"


@dataclasses.dataclass(frozen=True)
class Row:
  """A size of the ladder on a slice or on hosts, with its batch where it is not the preset's."""

  size: str
  topology: str
  mesh: tuple[int, int, int]
  batch_size: int | None = None
  micro_batches: int | None = None

  @property
  def name(self) -> str:
    """Key of the row in the table's .json file."""
    return f"{self.size} {self.topology}"

  def config(self, level: str) -> Config:
    """Makes the config of the row at a level of telemetry."""
    fields = [(f"mesh.{axis}", str(size)) for axis, size in
              zip(("data", "fsdp", "tensor"), self.mesh)]
    fields += [("train.batch_size", str(self.batch_size))] if self.batch_size else []
    fields += ([("train.grad_accumulation", str(self.micro_batches))] if self.micro_batches
               else [])
    return config_lib.apply_overrides(
        presets.preset(self.size), [*fields, ("telemetry.level", level)])


@dataclasses.dataclass(frozen=True)
class Ladder:
  """A page: its rows, and the words for what it is about.

  Attributes:
    platform: `tpu` or `gpu`.
    title: of the page.
    chip, slice: what one of them, and all of a row together, are called.
    packages: distributions whose versions the page names.
    note: what its counts leave out.
    has_cycles: whether the compiler estimates cycles.
    rows: sizes.
  """

  platform: str
  title: str
  chip: str
  slice: str
  packages: tuple[str, ...]
  note: str
  has_cycles: bool
  rows: tuple[Row, ...]


# 440 sequences of the 1.2B setup can be shared by 8 chips and not by 16, the 72 of 7B likewise;
# slices have powers of two, so larger ones take a batch that they can share.
TPU = Ladder(
    "tpu", "The size ladder on TPU slices, by the TPU compiler", "chip", "slice",
    ("jax", "libtpu"),
    "Attention's kernels leave out blocks of keys that no query may see, which 6 N D and attention "
    "counts; they and the kernel of telemetry count as moving each array once, and as no cycles.",
    True, (
        Row("130m", "v5e:2x4", (8, 1, 1)),
        Row("320m", "v5e:4x8", (4, 8, 1)),
        Row("1b", "v5e:16x16", (16, 16, 1), 512),
        Row("7b", "v5p:8x8x8", (8, 64, 1), 512)))
GPU = Ladder(
    "gpu", "The size ladder on GPUs, by the GPU compiler", "GPU", "hosts x GPUs",
    ("jax", "jax-cuda12-plugin", "nvidia-cudnn-cu12"),
    "Attention's kernels leave out pairs of tokens of which one may not see the other, which 6 N D "
    "and attention counts; they count as moving each array once. Which of its kernels the compiler "
    "would take for a matrix product it finds out on the GPU, so that here it takes the first.",
    False, (
        Row("130m", "h100:8", (8, 1, 1)),
        Row("320m", "h100:8", (8, 1, 1)),
        Row("1b", "h100:8", (1, 8, 1)),
        Row("7b", "h100:8x8", (8, 8, 1), 512),
        Row("7b", "h100:64x8", (64, 8, 1), 512)))


def ladder_of(page: str) -> Ladder:
  """The ladder that a page of this name holds: GPUs' where it begins with `gpu`, else TPUs'."""
  return GPU if page.startswith("gpu") else TPU


def faults(report: Mapping[str, Any]) -> list[str]:
  """Lists what a user would not want to find out on the pod, a line each."""
  lines = []
  for level, own in report["telemetry"].items():
    where = f"{own['topology']}, telemetry {level}: "
    if not own["fits"]:
      chip = "GPU" if topology.platform(own["topology"]) == "gpu" else "chip"
      lines.append(f"{where}needs {own['bytes_per_chip'] / GIB:.1f} GiB a {chip}, and there are "
                   f"{own['hbm_bytes'] / GIB:.1f}")
    lines += [f"{where}the compiler warns: {warning}" for warning in own["warnings"]]
    lines += [f"{where}{what} could not be counted" for what in own["uncounted"]]
  return lines


def markdown(ladder: Ladder, reports: Mapping[str, Any]) -> str:
  """Writes the page of the ladder, from what is kept alone; it need not have every row."""
  machine, chip = reports["machine"], ladder.chip
  missing = [row.name for row in ladder.rows if {"off", "basic"} - set(levels_of(row, reports))]
  rows = [row for row in ladder.rows if "off" in levels_of(row, reports)]
  formula = levels_of(rows[0], reports)["off"]["predicted_seconds_formula"]
  versions = ", ".join(f"{name} {machine[name]}" for name in (*ladder.packages, "date"))
  moved = ([f"collectives, GB a {chip}"] if ladder.platform == "tpu"
           else ["sent by NVLink, GB a GPU", "by network"])
  lines = [
      f"# {ladder.title}", "",
      f"`{COMMAND}`: the real train step, "
      f"compiled ahead of time. **No {ladder.platform.upper()} ran anything here**: memory, flops, "
      "bytes and collectives "
      "are those of the compiled program, loop bodies times their trip counts; seconds follow "
      f"from them by the formula below, and {chip}-hours and MFU from the seconds. "
      f"{versions.replace('date ', '')}.", "",
      f"Seconds: {formula}. MFU is 6 N D and attention over the seconds, at the peak of "
      f"bfloat16. {chip[0].upper()}{chip[1:]}-hours are for the tokens of the whole setup. "
      f"{ladder.note}", "",
      *_table([
          "size", ladder.slice, "mesh (data, fsdp, tensor)", "batch", f"GiB a {chip}", "fits",
          "PFLOP a step", "over 6 N D", f"GB moved a {chip}", *moved, "s a step", "MFU",
          f"{chip}-hours"], [_ladder_cells(ladder, row, reports[row.name]) for row in rows]),
      "", "## What telemetry adds", "", _about_telemetry(ladder), "",
      *_table([
          "size", ladder.slice, "level", "flops", "bytes moved",
          *(["cycles"] if ladder.has_cycles else []), "bytes in collectives",
          "of 4 x statistics x layers x width",
          *(["sent by NVLink", "by network"] if ladder.platform == "gpu" else [])],
          [_added_cells(ladder, row, level, levels["off"], own)
           for row in rows for levels in [levels_of(row, reports)]
           for level, own in levels.items()
           if level != "off" and own["flops"] and levels["off"]["flops"]])]
  problems = [line for row in rows for line in faults(reports[row.name])]
  lines += ["", "## What the compiler objects to", "",
            *([f"- {line}" for line in problems] or ["Nothing."])]
  if missing:
    lines += ["", f"Not compiled yet, without telemetry or with it: {', '.join(missing)}."]
  return "\n".join(lines) + "\n"


def _about_telemetry(ladder: Ladder) -> str:
  cycles = ("Cycles are the compiler's own estimate of what runs on a chip, vector arithmetic "
            "included, collectives not. " if ladder.has_cycles else "")
  return (f"To the same step without it, counted in the compiled programs. {cycles}What "
          "collectives need move at most is a float32 for each sum over tokens of activations, "
          "layer and neuron, single numbers included; of other things measured, as gradients and "
          "the optimiser, they move more."
          + (" A collective that the compiler makes of another kind than without telemetry, as an "
             "all-reduce in place of a reduce-scatter and a smaller all-reduce, counts with its "
             "difference; what each GPU sends says which link it is on."
             if ladder.platform == "gpu" else ""))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head),
          *("| " + " | ".join(row) + " |" for row in rows)]


def collectives_text(off: Mapping[str, Any], own: Mapping[str, Any]) -> str:
  """Says what a level adds in collectives, against 4 bytes for each number that its sites keep."""
  moved, most = moved_by_telemetry(off, own), statistics_bytes(own)
  sites = "; ".join(
      f"{name} {site['layers']} layers of {site['vectors']} vectors and {site['numbers']} numbers"
      for name, site in own["statistics"].items())
  ratio = f", {moved / most:.4f} of it" if most else ""
  return (f"collectives move {moved:+,} bytes; 4 x statistics x layers x width is {most:,}{ratio} "
          f"(of activations: {sites or 'none'})")


def statistics_bytes(own: Mapping[str, Any]) -> int:
  """Adds up 4 x statistics x layers x width over the sites."""
  return sum(site["bytes"] for site in own["statistics"].values())


def moved_by_telemetry(off: Mapping[str, Any], own: Mapping[str, Any]) -> int:
  """Counts bytes of arrays in collectives beyond those of the step without telemetry."""
  before, after = (sum(kind["bytes"] for kind in report["collectives"].values())
                   for report in (off, own))
  return int(after - before)


def levels_of(row: Row, reports: Mapping[str, Any]) -> Mapping[str, Any]:
  """Finds the reports of a row by level of telemetry."""
  levels: Mapping[str, Any] = reports.get(row.name, {}).get("telemetry", {})
  return levels


def _ladder_cells(ladder: Ladder, row: Row, report: Mapping[str, Any]) -> list[str]:
  config, preset = row.config("off"), config_lib.resolve(presets.preset(row.size))
  off, train = report["telemetry"]["off"], config.train
  parts = f" in {train.grad_accumulation} parts" if train.grad_accumulation > 1 else ""
  cells = [row.size, row.topology, " x ".join(map(str, row.mesh)),
           f"{train.batch_size} x {train.sequence_length}{parts}",
           f"{off['bytes_per_chip'] / GIB:.1f} of {off['hbm_bytes'] / GIB:.2f}",
           "yes" if off["fits"] else "no"]
  if off["flops"] is None or off["predicted_seconds"] is None:
    return [*cells, *["-"] * (7 if ladder.platform == "tpu" else 8)]
  steps = preset.train.steps * preset.train.batch_size / train.batch_size
  if ladder.platform == "tpu":
    moved = [sum(kind["bytes"] for kind in off["collectives"].values())]
  else:
    moved = [_sent(off, link) for link in ("nvlink", "network")]
  hours = steps * off["predicted_seconds"] * off["chips"] / 3600
  return [*cells, f"{off['flops'] / 1e15:.4g}", f"{off['flops'] / off['model_flops']:.3f}",
          f"{off['bytes_accessed'] / 1e9:.4g}", *(f"{part / 1e9:.3g}" for part in moved),
          f"{off['predicted_seconds']:.3g}", f"{off['predicted_mfu']:.0%}", f"{hours:,.3g}"]


def _added_cells(ladder: Ladder, row: Row, level: str, off: Mapping[str, Any],
                 own: Mapping[str, Any]) -> list[str]:
  def added(key: str) -> str:
    return f"{own[key] / off[key] - 1:+.2%}"

  moved, most = moved_by_telemetry(off, own), statistics_bytes(own)
  return [row.size, row.topology, level, added("flops"), added("bytes_accessed"),
          *([added("cycles")] if ladder.has_cycles else []), f"{moved:+,}",
          f"{moved / most:.4f}" if most else "-",
          *([f"{_sent(own, link) - _sent(off, link):+,.0f}" for link in ("nvlink", "network")]
            if ladder.platform == "gpu" else [])]


def _sent(own: Mapping[str, Any], link: str) -> float:
  return float(sum(kind["sent"] for kind in own["collectives_by_link"][link].values()))
