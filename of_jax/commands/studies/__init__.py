"""Studies, declared one a file. Enters: a study's name and scale. Leaves: its grid
of runs, as overrides of one base config, and its claims with their rules.
"""

import dataclasses
import importlib
import pathlib
import runpy
from collections.abc import Mapping, Sequence

from of_jax.claims.judge import Claim
from of_jax.commands import cli
from of_jax.commands.help_text import CONFIGS
from of_jax.config import Config, paths
from of_jax.errors import THEIRS, UserError, nearest, reason_of
from of_jax.report.metrics import STREAM
from of_jax.scaling.ladder import Ladder

Overrides = tuple[tuple[str, str], ...]
# The end of every rule's text, see of_jax.claims.effects.
BEYOND = ("Reproduced if the 90 % interval over seeds lies beyond the margin, not reproduced if on "
          "the other side, else inconclusive; of several parts all must be, and any contradicts.")


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
    ladders: whose largest size is forecast before it is trained.
    question: what the study asks, a yes or no; the title of its page.
    answer: id of the claim whose verdict answers it; default the first.
    figure: what the page draws on top, beside the intervals of that claim: a metric of the stream
      over training, or the first panel of one of `analyses`.
  """

  config: str
  common: Overrides
  runs: Mapping[str, Overrides]
  claims: Sequence[Claim]
  paper: Mapping[str, str]
  analyses: Sequence[str] = ()
  ladders: Sequence[Ladder] = ()
  question: str = ""
  answer: str = ""
  figure: str = "kurtosis"


def names() -> list[str]:
  """Lists the names of the declared studies."""
  return sorted(p.stem for p in pathlib.Path(__file__).parent.glob("*.py")
                if p.stem != "__init__")


def load(study: str, scale: str) -> Scale:
  """Loads the declaration of one study at one scale.

  Args:
    study: a name, or a file of the user's own that ends in .py and defines SCALES.
    scale: one of its scales.

  Raises:
    UserError: no such study or scale; the nearest is named.
  """
  if study.endswith(".py"):
    scales = _own(study)
  elif study not in names():
    raise UserError(f"--study={study}: no such study{_nearest(study, names())}")
  else:
    scales = importlib.import_module(f"of_jax.commands.studies.{study}").SCALES
  if scale not in scales:
    raise UserError(f"--scale={scale}: {study} has no such scale{_nearest(scale, list(scales))}")
  _check(study, scales[scale])
  return scales[scale]


def _check(study: str, scale: Scale) -> None:
  """Checks that what a study's page names is there."""
  for field, value, known in (("answer", scale.answer, [claim.id for claim in scale.claims]),
                              ("figure", scale.figure, [*STREAM, *scale.analyses])):
    if value and value not in known:
      raise UserError(f"--study={study}: its {field}={value} is none of its "
                      f"{'claims' if field == 'answer' else 'metrics or analyses'}"
                      f"{_nearest(value, known)}")


def about(scale: Scale) -> dict[str, str]:
  """Gives what study.json says of the page: question, answer and figure."""
  return {"question": scale.question, "answer": scale.answer, "figure": scale.figure}


def short_name(study: str) -> str:
  """Returns the name under which a study's record stands: of a file, less its folder."""
  return pathlib.Path(study).stem if study.endswith(".py") else study


def _own(path: str) -> Mapping[str, Scale]:
  """Loads the scales of a file, whose configs may be named from where it lies."""
  file = paths.expanded(path, f"--study={path}")
  if not file.is_file():
    raise UserError(f"--study={path}: no such file")
  if file.stem in names():
    raise UserError(f"--study={path}: {file.stem} is the name of a study here; name the file "
                    "otherwise")
  try:
    scales = runpy.run_path(str(file)).get("SCALES")
  except THEIRS as error:  # The file is the user's: whatever it raises is their mistake.
    raise UserError(f"--study={path}: {reason_of(error)}") from error
  if not isinstance(scales, Mapping) or not all(
      isinstance(one, Scale) for one in scales.values()):
    raise UserError(f"--study={path}: defines no SCALES, a dictionary of names and "
                    "of_jax.commands.studies.Scale")
  found = {}
  for name, scale in scales.items():
    beside = file.parent / scale.config.partition(":")[0]
    found[name] = dataclasses.replace(scale, config=str(file.parent / scale.config)) if (
        beside.is_file()) else scale
  return found


def base_config(scale: Scale) -> str:
  """Returns what `--config` takes for the study's base config, wherever the command was typed."""
  own = pathlib.Path(scale.config.partition(":")[0])
  return scale.config if own.is_absolute() else str(CONFIGS / pathlib.Path(scale.config).name)


def configs(scale: Scale) -> dict[str, Config]:
  """Resolves every run's config by name as the study declares it, whatever was typed."""
  base = base_config(scale)
  return {name: cli.load_config(base, [*scale.common, *own], typed=False)
          for name, own in scale.runs.items()}


def _nearest(name: str, known: list[str]) -> str:
  return nearest(name, known, cutoff=0.4, otherwise=f"; there are {', '.join(known)}")
