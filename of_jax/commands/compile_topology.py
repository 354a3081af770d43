r"""Compiles the real train step for TPUs or GPUs, on a machine that has none.

  python -m experiments.compile_topology --config=experiments/configs/ladder.py:320m \
      --topology=v5e:4x8 --config.mesh.data=4 --config.mesh.fsdp=8
  python -m experiments.compile_topology --config=experiments/configs/ladder.py:1b \
      --topology=h100:8 --config.mesh.fsdp=8 --config.train.grad_accumulation=5
  python -m experiments.compile_topology --table=docs/tpu_ladder.md,docs/gpu_ladder.md

Needs the extra `tpu`, whose libtpu holds the compiler, or `gpu-compiler` for h100:8, and h100:2x8,
two hosts of eight. The step is compiled at every telemetry level asked for; --out=FILE.json keeps
what is printed. Exit status 1 where it does not fit the chips' memory or the compiler warns, as of
an array that it gathers whole on every chip. With --table the size ladder is compiled, each size
for the slices or hosts named in of_jax/commands/ladder_pages.py: GPUs on a page whose name begins
with `gpu`, else TPUs; results are kept beside the page as .json, and a program that is there is not
compiled again: stopped, the same command goes on. The page says what is missing.
"""

import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from of_jax import config as config_lib
from of_jax.commands import cli
from of_jax.commands.ladder_pages import Ladder, collectives_text, faults, ladder_of, markdown
from of_jax.config import Config, paths
from of_jax.cost_model import topology
from of_jax.cost_model.accelerator import GIB
from of_jax.errors import UserError
from of_jax.storage import run_directory

_CONFIG = flags.DEFINE_string("config", None, "config file, or FILE:ARGUMENT")
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "slice: v5e or v6e up to 16x16, v5p up to 1,024 chips, as in v5p:4x4x8; or "
    "a100, h100, h200, b200: hosts x GPUs, as in h100:8 and h100:16x8")
_TELEMETRY = flags.DEFINE_list(
    "telemetry", ["off", "basic"],
    "levels to compile: beside the config's own, or for a table, which has off in any case")
_TABLE = flags.DEFINE_list("table", None, "pages for the size ladder, of TPUs or of gpu...")


def compile_levels(configs: Mapping[str, Config], slice_name: str) -> dict[str, Any]:
  """Compiles every level; gives the report of the first, with those of all under `telemetry`."""
  # jax comes with it, so it is imported only once the command line is known to be good.
  from of_jax.train import ahead_of_time
  reports = {}
  for level, config in configs.items():
    print(f"{slice_name}, telemetry {level}: compiling", file=sys.stderr, flush=True)
    reports[level] = ahead_of_time.compile_step(config, slice_name)
  return {**next(iter(reports.values())), "telemetry": reports}


def main() -> None:
  """Compiles what the command line asks for, and prints or keeps the report."""
  out = cli.output_file("out")
  if bool(_TABLE.value) == bool(_CONFIG.value):
    raise UserError("give --config and --topology, or --table; see --help")
  if _TABLE.value:
    if _TOPOLOGY.value is not None:
      raise UserError(f"--topology={_TOPOLOGY.value}: --table has slices of its own; leave it out")
    _tables([paths.check_output_file(f"--table={page}", paths.expanded(page, f"--table={page}"))
             for page in _TABLE.value])
    return
  if _TOPOLOGY.value is None:
    raise UserError("--topology is missing, as in --topology=v5e:4x4 or --topology=h100:8")
  assert _CONFIG.value is not None
  topology.parse_topology(_TOPOLOGY.value)
  config = cli.load_config(_CONFIG.value)
  levels = dict.fromkeys([config.telemetry.level, *_TELEMETRY.value])
  configs = {level: cli.load_config(_CONFIG.value, []) if level == config.telemetry.level else
             config_lib.apply_overrides(config, [("telemetry.level", level), *(
                 [("telemetry.optimizer", "false")] if level == "off" else [])])
             for level in levels}
  _check_compiler(topology.platform(_TOPOLOGY.value))
  report = compile_levels(configs, _TOPOLOGY.value)
  if out is not None:
    run_directory.write_json(out, report)
  _print(report)
  _exit_over(faults(report))


def _check_compiler(platform: str) -> None:
  topology.check_compiler(platform)
  # Before jax is imported, which would look for an accelerator to run on.
  os.environ["JAX_PLATFORMS"] = "cpu"


def _tables(pages: Sequence[pathlib.Path]) -> None:
  ladders = {page: ladder_of(page.name) for page in pages}
  kept = {page: run_directory.read_json(file) if (file := page.with_suffix(".json")).exists()
          else {} for page in pages}
  for page, ladder in ladders.items():
    if any(level not in kept[page].get(row.name, {}).get("telemetry", {})
           for row in ladder.rows for level in _levels()):
      _check_compiler(ladder.platform)
  problems = []
  for page, ladder in ladders.items():
    _table(page, ladder, kept[page])
    problems += [line for row in ladder.rows for line in faults(kept[page][row.name])]
  _exit_over(problems)


def _levels() -> list[str]:
  return list(dict.fromkeys(["off", *_TELEMETRY.value]))


def _table(page: pathlib.Path, ladder: Ladder, reports: dict[str, Any]) -> None:
  for row in ladder.rows:
    for level in _levels():
      done = reports.setdefault(row.name, {"telemetry": {}})["telemetry"]
      if level not in done:
        # Kept one by one: a large step takes the compiler minutes.
        done.update(compile_levels({level: row.config(level)}, row.topology)["telemetry"])
        reports["machine"] = _machine(ladder)
        run_directory.write_json(page.with_suffix(".json"), reports)
        page.write_text(markdown(ladder, reports))
  page.write_text(markdown(ladder, reports))
  print(page)


def _machine(ladder: Ladder) -> dict[str, str]:
  import datetime
  import importlib.metadata
  return {**{name: importlib.metadata.version(name) for name in ladder.packages},
          "date": datetime.date.today().isoformat()}


def _exit_over(lines: Sequence[str]) -> None:
  for line in lines:
    print(f"error: {line}", file=sys.stderr)
  if lines:
    sys.exit(1)


def _print(report: Mapping[str, Any]) -> None:
  from rich.console import Console
  from rich.table import Table
  chip = "GPU" if topology.platform(report["topology"]) == "gpu" else "chip"
  table = Table("telemetry", f"GiB a {chip}", "of", "flops", f"bytes a {chip}",
                "collectives, bytes", "s a step", "MFU", *(["cycles"] if chip == "chip" else []))
  for level, own in report["telemetry"].items():
    moved = None if own["collectives"] is None else sum(
        kind["bytes"] for kind in own["collectives"].values())
    cells = ((own["bytes_per_chip"] / GIB, ".2f"), (own["hbm_bytes"] / GIB, ".2f"),
             (own["flops"], ".4g"), (own["bytes_accessed"], ".4g"), (moved, ".4g"),
             (own["predicted_seconds"], ".4g"), (own["predicted_mfu"], ".1%"),
             *([(own["cycles"], ".4g")] if chip == "chip" else []))
    table.add_row(level, *("-" if value is None else format(value, form) for value, form in cells))
  console = Console(width=None if sys.stdout.isatty() else 140)
  console.print(f"{report['topology']}, {report['chips']} {chip}s, mesh "
                + " x ".join(f"{axis} {size}" for axis, size in report["mesh"].items()))
  console.print(table)
  for where, kinds in (report.get("collectives_by_link")
                       or {"": report["collectives"] or {}}).items():
    for kind, total in kinds.items():
      console.print(f"{kind}{f' by {where}' if where else ''}: {total['count']} of "
                    f"{total['bytes'] / 1e9:.3f} GB in all")
  off = report["telemetry"].get("off")
  for level, own in report["telemetry"].items():
    if off and level != "off" and own["collectives"] is not None and off["collectives"] is not None:
      console.print(f"{level}: {collectives_text(off, own)}", highlight=False)
  if report.get("attention"):
    console.print(f"attention: {report['attention']}", highlight=False)
  console.print(f"seconds: {report['predicted_seconds_formula']}", highlight=False)


if __name__ == "__main__":
  flags.DEFINE_string("out", None, "file for the result as JSON; default: none is left")
  cli.run(main)
