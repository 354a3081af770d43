"""Studies, declared one a file. Enters: a study's name and scale. Leaves: its grid
of runs, as overrides of one base config, and its claims with their rules.
"""

import dataclasses
import importlib
import pathlib
from collections.abc import Mapping, Sequence

from of_jax.claims.judge import Claim
from of_jax.commands import cli
from of_jax.commands.help_text import CONFIGS
from of_jax.config import Config
from of_jax.errors import UserError, nearest

Overrides = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Scale:
  """Declaration of a study at one size.

  Attributes:
    config: base config of every run, as `--config` takes it.
    common: overrides of every run.
    runs: run's name -> its own overrides, in the order in which they are trained.
    claims: declared before the runs.
    paper: config field -> the paper's value in words, so that a page can say what differs.
    analyses: names of of_jax.analysis.registry, each made of every checkpoint of each finished
      run, for the claims to read.
  """

  config: str
  common: Overrides
  runs: Mapping[str, Overrides]
  claims: Sequence[Claim]
  paper: Mapping[str, str]
  analyses: Sequence[str] = ()


def names() -> list[str]:
  """Lists the names of the declared studies."""
  return sorted(p.stem for p in pathlib.Path(__file__).parent.glob("*.py")
                if p.stem != "__init__")


def load(study: str, scale: str) -> Scale:
  """Loads the declaration of one study at one scale.

  Raises:
    UserError: no such study or scale; the nearest is named.
  """
  if study not in names():
    raise UserError(f"--study={study}: no such study{_nearest(study, names())}")
  scales: Mapping[str, Scale] = importlib.import_module(f"of_jax.commands.studies.{study}").SCALES
  if scale not in scales:
    raise UserError(f"--scale={scale}: {study} has no such scale{_nearest(scale, list(scales))}")
  return scales[scale]


def base_config(scale: Scale) -> str:
  """Returns what `--config` takes for the study's base config, wherever the command was typed."""
  return str(CONFIGS / pathlib.Path(scale.config).name)


def configs(scale: Scale) -> dict[str, Config]:
  """Resolves every run's config by name as the study declares it, whatever was typed."""
  base = base_config(scale)
  return {name: cli.load_config(base, [*scale.common, *own], typed=False)
          for name, own in scale.runs.items()}


def _nearest(name: str, known: list[str]) -> str:
  return nearest(name, known, cutoff=0.4, otherwise=f"; there are {', '.join(known)}")
