"""Figures and a page from run directories alone; trains nothing.

  python -m experiments.report --root=DIR

DIR is a study's folder, a folder of runs, one run, or a folder of studies, which gets an index of
them. It gets report.html, one file that opens without a network, and, but for an index, figure.svg
and figure.png. A study's claims are judged again. A run that
logged its largest neurons gets timeline.svg and timeline.png.
"""

import pathlib
import urllib.parse
from collections.abc import Sequence
from typing import Any

from absl import flags
from rich.console import Console

from of_jax.analysis.runs import Run, folders_with
from of_jax.claims import study_record
from of_jax.commands import cli, studies
from of_jax.config.paths import check_output_folder, expanded
from of_jax.errors import UserError, refusing
from of_jax.report import index, ladders, page, panel_plots, panels, plots, terminal
from of_jax.storage import remote, run_directory

PAGE = "report.html"
TIMELINE = "timeline"


def write(root: pathlib.Path, console: Console) -> pathlib.Path:
  """Writes the page and the figure of `root`, prints the tables, returns the page's path.

  Raises:
    UserError: no run in `root`, or one that cannot be read. Nothing has been written then.
  """
  if not root.is_dir():
    raise UserError(f"--root={root}: no such folder")
  with refusing(f"--root={root}", "holds files that no run or study of this version left"):
    return _write(root, console)


def _write(root: pathlib.Path, console: Console) -> pathlib.Path:
  study = study_record.read(root)
  runs = _runs(root, study)
  if not runs and study is None and (found := _studies(root)):
    return _write_index(root, found, console)
  if not runs:
    raise UserError(f"--root={root}: holds no run directory")
  if study is not None:
    study = _judged(study, runs)
  text = page.render(runs, study, plots.svg(runs), ladders.drawn(root, study or {}))
  plots.save(runs, root)
  for run in runs.values():
    timeline = panels.timeline(run)
    if timeline:
      panel_plots.save(timeline, run.path, TIMELINE)
  if study is not None:
    study_record.write(root, study)
  path = root / PAGE
  run_directory.replace_text(path, text)
  terminal.print_runs(console, runs)
  if study is not None:
    terminal.print_claims(console, study["claims"])
  return path.resolve()


def _studies(root: pathlib.Path) -> list[pathlib.Path]:
  """Finds the folders of studies below `root`; what lies in one is no other."""
  return sorted(folders_with(study_record.STUDY, root))


def _write_index(root: pathlib.Path, found: Sequence[pathlib.Path], console: Console
                 ) -> pathlib.Path:
  """Writes the index of several studies, each judged again on what its runs hold."""
  studied, pages = {}, {}
  for folder in found:
    study = study_record.read(folder)
    assert study is not None
    name = folder.relative_to(root).as_posix()
    runs = _runs(folder, study)
    studied[name] = _judged(study, runs) if runs else study
    if (folder / PAGE).is_file():
      pages[name] = urllib.parse.quote(f"{name}/{PAGE}")
  text = index.render(studied, pages)
  run_directory.replace_text(root / PAGE, text)
  for name, study in studied.items():
    console.print(name, style="bold", highlight=False, markup=False)
    terminal.print_claims(console, study["claims"])
  return (root / PAGE).resolve()


def main() -> None:
  """Writes the report of the folder that the command line names."""
  if not flags.FLAGS.root:
    raise UserError("--root: needs a value; see --help")
  root = flags.FLAGS.root
  if not remote.is_url(root):
    root = str(expanded(root, f"--root={root}"))
    if pathlib.Path(root).is_dir():
      check_output_folder(f"--root={root}", pathlib.Path(root))
  with remote.working(root, writes=True) as folder:
    page = write(folder, terminal.console())
  print(f"{root.rstrip('/')}/{PAGE}" if remote.is_url(root) else page)


def _runs(root: pathlib.Path, study: dict[str, Any] | None) -> dict[str, Run]:
  if study is None:
    return study_record.load_runs(root)
  return study_record.load_runs(root, [run["name"] for run in study["runs"]])


def _judged(study: dict[str, Any], runs: dict[str, Run]) -> dict[str, Any]:
  """The record with its claims judged on what the runs hold now, and the numbers of each run.

  A study that this clone does not declare keeps the verdicts that it came with.
  """
  if str(study["study"]) not in studies.names():
    # A file that a record names is never run.
    return study
  try:
    scale = studies.load(str(study["study"]), str(study["scale"]))
  except UserError:
    return study
  numbers = [{**run, **study_record.numbers(runs.get(run["name"]))} for run in study["runs"]]
  claims = study_record.judge(scale.claims, runs, study, studies.configs(scale))
  return {**study, **studies.about(scale), "claims": claims, "runs": numbers}


if __name__ == "__main__":
  flags.DEFINE_string("root", "", "a study's folder, a folder of runs, one run, or a folder of "
                      "studies")
  cli.run(main)
