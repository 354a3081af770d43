r"""Compiles the real train step for a TPU slice, on a machine that has no TPU.

  python -m experiments.compile_topology --config=experiments/configs/ladder.py:320m \
      --topology=v5e:4x8 --config.mesh.data=4 --config.mesh.fsdp=8
  python -m experiments.compile_topology --table=docs/tpu_ladder.md

Needs the extra `tpu`, whose libtpu holds the compiler. The step is compiled at every telemetry
level asked for; --out=FILE.json keeps what is printed. Exit status 1 where it does not fit the
chips' memory or the compiler warns, as of an array that it gathers whole on every chip. With
--table the size ladder is compiled, each size for the slices named in this file; results are kept
beside the page as .json, and a program that is there is not compiled again: stopped, the same
command goes on. The page says what is missing.
"""

import dataclasses
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from of_jax import config as config_lib
from of_jax.commands import cli
from of_jax.config import Config, presets
from of_jax.cost_model import topology
from of_jax.cost_model.chips import GIB
from of_jax.errors import UserError
from of_jax.storage import run_directory

_CONFIG = flags.DEFINE_string("config", None, "config file, or FILE:ARGUMENT")
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "slice: v5e or v6e up to 16x16, v5p up to 1,024 chips, as in v5p:4x4x8")
_TELEMETRY = flags.DEFINE_list(
    "telemetry", ["off", "basic"],
    "levels to compile: beside the config's own, or for a table, which has off in any case")
_TABLE = flags.DEFINE_string("table", None, "page for the table of the size ladder")


@dataclasses.dataclass(frozen=True)
class Row:
  """A size of the ladder on a slice, with its batch where it is not the preset's."""

  size: str
  topology: str
  mesh: tuple[int, int, int]
  batch_size: int | None = None

  @property
  def name(self) -> str:
    """Key of the row in the table's .json file."""
    return f"{self.size} {self.topology}"

  def config(self, level: str) -> Config:
    """Makes the config of the row at a level of telemetry."""
    fields = [(f"mesh.{axis}", str(size)) for axis, size in
              zip(("data", "fsdp", "tensor"), self.mesh)]
    fields += [("train.batch_size", str(self.batch_size))] if self.batch_size else []
    return config_lib.apply_overrides(
        presets.preset(self.size), [*fields, ("telemetry.level", level)])


# 440 sequences of the 1.2B setup can be shared by 8 chips and not by 16, the 72 of 7B likewise;
# slices have powers of two, so larger ones take a batch that they can share.
LADDER = (
    Row("130m", "v5e:2x4", (8, 1, 1)),
    Row("320m", "v5e:4x8", (4, 8, 1)),
    Row("1b", "v5e:16x16", (16, 16, 1), 512),
    Row("7b", "v5p:8x8x8", (8, 64, 1), 512),
)


def compile_levels(configs: Mapping[str, Config], slice_name: str) -> dict[str, Any]:
  """Compiles every level; gives the report of the first, with those of all under `telemetry`."""
  # jax comes with it, so it is imported only once the command line is known to be good.
  from of_jax.train import ahead_of_time
  reports = {}
  for level, config in configs.items():
    print(f"{slice_name}, telemetry {level}: compiling", file=sys.stderr, flush=True)
    reports[level] = ahead_of_time.compile_step(config, slice_name)
  return {**next(iter(reports.values())), "telemetry": reports}


def faults(report: Mapping[str, Any]) -> list[str]:
  """Lists what a user would not want to find out on the pod, a line each."""
  lines = []
  for level, own in report["telemetry"].items():
    where = f"{own['topology']}, telemetry {level}: "
    if not own["fits"]:
      lines.append(f"{where}needs {own['bytes_per_chip'] / GIB:.1f} GiB a chip, and there are "
                   f"{own['hbm_bytes'] / GIB:.1f}")
    lines += [f"{where}the compiler warns: {warning}" for warning in own["warnings"]]
    lines += [f"{where}{what} could not be counted" for what in own["uncounted"]]
  return lines


def markdown(rows: Sequence[Row], reports: Mapping[str, Any]) -> str:
  """Writes the page of the ladder, from what `_table` keeps alone; it need not have every row."""
  machine = reports["machine"]
  missing = [row.name for row in rows if {"off", "basic"} - set(_levels(row, reports))]
  rows = [row for row in rows if "off" in _levels(row, reports)]
  formula = _levels(rows[0], reports)["off"]["predicted_seconds_formula"]
  lines = [
      "# The size ladder on TPU slices, by the TPU compiler", "",
      "`python -m experiments.compile_topology --table=docs/tpu_ladder.md`: the real train step, "
      "compiled ahead of time. **No TPU ran anything here**: memory, flops, bytes and collectives "
      "are those of the compiled program, loop bodies times their trip counts; seconds follow "
      "from them by the formula below, and chip-hours and MFU from the seconds. "
      f"jax {machine['jax']}, libtpu {machine['libtpu']}, {machine['date']}.", "",
      f"Seconds: {formula}. MFU is 6 N D and attention over the seconds, at the peak of "
      "bfloat16. Chip-hours are for the tokens of the whole setup. Attention's kernels leave out "
      "blocks of keys that no query may see, which 6 N D and attention counts; they and the "
      "kernel of telemetry count as moving each array once, and as no cycles.", "",
      "| size | slice | mesh (data, fsdp, tensor) | batch | GiB a chip | fits | PFLOP a step | "
      "over 6 N D | GB moved a chip | collectives, GB a chip | s a step | MFU | chip-hours |",
      "|---|---|---|---|---|---|---|---|---|---|---|---|---|"]
  for row in rows:
    lines.append(_ladder_line(row, reports[row.name]))
  lines += [
      "", "## What telemetry adds", "",
      "To the same step without it, counted in the compiled programs. Cycles are the compiler's "
      "own estimate of what runs on a chip, vector arithmetic included, collectives not. What "
      "collectives need move at most is a float32 for each sum over tokens of activations, layer "
      "and neuron, single numbers included; of other things measured, as gradients and the "
      "optimiser, they move more.", "",
      "| size | slice | level | flops | bytes moved | cycles | bytes in collectives | "
      "of 4 x statistics x layers x width |",
      "|---|---|---|---|---|---|---|---|"]
  for row in rows:
    levels = reports[row.name]["telemetry"]
    lines += [_added_line(row, level, levels["off"], own) for level, own in levels.items()
              if level != "off" and own["flops"] and levels["off"]["flops"]]
  problems = [line for row in rows for line in faults(reports[row.name])]
  lines += ["", "## What the compiler objects to", "",
            *([f"- {line}" for line in problems] or ["Nothing."])]
  if missing:
    lines += ["", f"Not compiled yet, without telemetry or with it: {', '.join(missing)}."]
  return "\n".join(lines) + "\n"


def main() -> None:
  """Compiles what the command line asks for, and prints or keeps the report."""
  out, table = cli.output_file("out"), cli.output_file("table")
  if bool(_TABLE.value) == bool(_CONFIG.value):
    raise UserError("give --config and --topology, or --table; see --help")
  if _TABLE.value and _TOPOLOGY.value is not None:
    raise UserError(f"--topology={_TOPOLOGY.value}: --table has slices of its own; leave it out")
  if table is not None:
    _check_compiler()
    _table(table)
    return
  if _TOPOLOGY.value is None:
    raise UserError("--topology is missing, as in --topology=v5e:4x4")
  assert _CONFIG.value is not None
  topology.parse_topology(_TOPOLOGY.value)
  config = cli.load_config(_CONFIG.value)
  levels = dict.fromkeys([config.telemetry.level, *_TELEMETRY.value])
  configs = {level: cli.load_config(_CONFIG.value, []) if level == config.telemetry.level else
             config_lib.apply_overrides(config, [("telemetry.level", level), *(
                 [("telemetry.optimizer", "false")] if level == "off" else [])])
             for level in levels}
  _check_compiler()
  report = compile_levels(configs, _TOPOLOGY.value)
  if out is not None:
    run_directory.write_json(out, report)
  _print(report)
  _exit_over(faults(report))


def _check_compiler() -> None:
  topology.check_compiler()
  # Before jax is imported, which would look for a TPU to run on.
  os.environ["JAX_PLATFORMS"] = "cpu"


def _table(page: pathlib.Path) -> None:
  kept = page.with_suffix(".json")
  reports: dict[str, Any] = run_directory.read_json(kept) if kept.exists() else {}
  for row in LADDER:
    for level in dict.fromkeys(["off", *_TELEMETRY.value]):
      done = reports.setdefault(row.name, {"telemetry": {}})["telemetry"]
      if level not in done:
        # Kept one by one: a large step takes the compiler minutes.
        done.update(compile_levels({level: row.config(level)}, row.topology)["telemetry"])
        reports["machine"] = _machine()
        run_directory.write_json(kept, reports)
        page.write_text(markdown(LADDER, reports))
  page.write_text(markdown(LADDER, reports))
  print(page)
  _exit_over([line for row in LADDER for line in faults(reports[row.name])])


def _machine() -> dict[str, str]:
  import datetime
  import importlib.metadata
  return {"jax": importlib.metadata.version("jax"),
          "libtpu": importlib.metadata.version("libtpu"),
          "date": datetime.date.today().isoformat()}


def _exit_over(lines: Sequence[str]) -> None:
  for line in lines:
    print(f"error: {line}", file=sys.stderr)
  if lines:
    sys.exit(1)


def _print(report: Mapping[str, Any]) -> None:
  from rich.console import Console
  from rich.table import Table
  table = Table("telemetry", "GiB a chip", "of", "flops", "bytes a chip", "collectives, bytes",
                "s a step", "MFU", "cycles")
  for level, own in report["telemetry"].items():
    moved = own["collectives"] and sum(kind["bytes"] for kind in own["collectives"].values())
    cells = ((own["bytes_per_chip"] / GIB, ".2f"), (own["hbm_bytes"] / GIB, ".2f"),
             (own["flops"], ".4g"), (own["bytes_accessed"], ".4g"), (moved, ".4g"),
             (own["predicted_seconds"], ".4g"), (own["predicted_mfu"], ".1%"),
             (own["cycles"], ".4g"))
    table.add_row(level, *("-" if value is None else format(value, form) for value, form in cells))
  console = Console(width=None if sys.stdout.isatty() else 140)
  console.print(f"{report['topology']}, {report['chips']} chips, mesh "
                + " x ".join(f"{axis} {size}" for axis, size in report["mesh"].items()))
  console.print(table)
  for kind, total in (report["collectives"] or {}).items():
    console.print(f"{kind}: {total['count']} of {total['bytes'] / 1e9:.3f} GB in all")
  off = report["telemetry"].get("off")
  for level, own in report["telemetry"].items():
    if off and level != "off" and own["collectives"] is not None and off["collectives"] is not None:
      console.print(f"{level}: {collectives_text(off, own)}", highlight=False)
  console.print(f"seconds: {report['predicted_seconds_formula']}", highlight=False)


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


def _levels(row: Row, reports: Mapping[str, Any]) -> Mapping[str, Any]:
  levels: Mapping[str, Any] = reports.get(row.name, {}).get("telemetry", {})
  return levels


def _ladder_line(row: Row, report: Mapping[str, Any]) -> str:
  config, preset = row.config("off"), config_lib.resolve(presets.preset(row.size))
  off = report["telemetry"]["off"]
  cells = [row.size, row.topology, " x ".join(map(str, row.mesh)),
           f"{config.train.batch_size} x {config.train.sequence_length}",
           f"{off['bytes_per_chip'] / GIB:.1f} of {off['hbm_bytes'] / GIB:.2f}",
           "yes" if off["fits"] else "no"]
  if off["flops"] is None or off["predicted_seconds"] is None:
    return "| " + " | ".join([*cells, *["-"] * 7]) + " |"
  steps = preset.train.steps * preset.train.batch_size / config.train.batch_size
  moved = sum(kind["bytes"] for kind in off["collectives"].values())
  hours = steps * off["predicted_seconds"] * off["chips"] / 3600
  cells += [f"{off['flops'] / 1e15:.4g}", f"{off['flops'] / off['model_flops']:.3f}",
            f"{off['bytes_accessed'] / 1e9:.4g}", f"{moved / 1e9:.3g}",
            f"{off['predicted_seconds']:.3g}", f"{off['predicted_mfu']:.0%}", f"{hours:,.3g}"]
  return "| " + " | ".join(cells) + " |"


def _added_line(row: Row, level: str, off: Mapping[str, Any], own: Mapping[str, Any]) -> str:
  def added(key: str) -> str:
    return f"{own[key] / off[key] - 1:+.2%}"

  moved, most = moved_by_telemetry(off, own), statistics_bytes(own)
  return (f"| {row.size} | {row.topology} | {level} | {added('flops')} | "
          f"{added('bytes_accessed')} | {added('cycles')} | {moved:+,} | "
          f"{f'{moved / most:.4f}' if most else '-'} |")


if __name__ == "__main__":
  flags.DEFINE_string("out", None, "file for the result as JSON; default: none is left")
  cli.run(main)
