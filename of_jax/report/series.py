"""Groups of runs, and curves thinned, for figures. Enters: runs. Leaves: for each run its group
(what gets a colour), its condition (what gets a panel) and its seed (what gets a dash), and
curves of few enough points to draw.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from of_jax.analysis.curves import Floats, Ints
from of_jax.analysis.runs import Run
from of_jax.claims.study_record import flatten, varying

# Fields that say how much is measured, and when; what is trained does not depend on them.
_OBSERVING = ("telemetry.", "train.log_every", "train.eval_every", "train.checkpoint_every",
              "train.checkpoint_log_base", "train.keep_checkpoints")

# Okabe and Ito's colours, which the colour-blind tell apart. A block keeps its colour on every
# figure: Pre-Norm vermilion, Outlier Protected blue.
_COLOURS = {"pre": "#D55E00", "op": "#0072B2"}
_OTHERS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F",
           # Of Tol's muted scheme, for studies of many groups.
           "#332288", "#999933", "#882255", "#117733", "#AA4499", "#44AA99", "#DDCC77")
# So many settings may stand side by side in one panel, and be named by so many fields.
_MOST_SIDE_BY_SIDE, _WORDS = 12, 3
DASHES = ("solid", "dash", "dot", "dashdot")


@dataclasses.dataclass(frozen=True)
class Series:
  """Place of one run in the figures.

  Attributes:
    label: the words of a legend.
    is_alike: whether another run of its condition has its colour and its dash, so that only its
      name, which is its label then, tells it from that.
  """

  run: Run
  group: str
  condition: str
  seed: int
  colour: str
  dash: str
  label: str
  is_alike: bool

  @property
  def setting(self) -> str:
    """The words for all runs that differ from it in their seed alone."""
    return ", ".join(filter(None, (self.group, self.condition)))


def arrange(runs: Mapping[str, Run]) -> list[Series]:
  """Gives each run its place in the figures, in the order given.

  The group is the block, with its norm where one block is run with several; of residual MLPs, which
  have no block, and where the block is one throughout, it is the optimiser if that varies. A field
  that varies inside a group makes the condition; one that follows from the group, such as op's
  gain, does not, nor does one that says what is measured. Where no condition has two groups, as in
  a sweep of one block or of runs that have little in common, each setting is a group of its own.
  """
  groups, conditions = _places(runs)
  colours = _assign(list(dict.fromkeys(groups.values())))
  seeds = sorted({run.config.train.seed for run in runs.values()})
  dashes = {name: DASHES[seeds.index(run.config.train.seed) % len(DASHES)]
            for name, run in runs.items()}
  looks = {name: (conditions[name], colours[groups[name]], dashes[name]) for name in runs}
  seen = collections.Counter(looks.values())
  result = []
  for name, run in runs.items():
    alike, seed = seen[looks[name]] > 1, run.config.train.seed
    label = f"{groups[name]}, seed {seed}" if len(seeds) > 1 else groups[name]
    result.append(Series(run, groups[name], *looks[name][:1], seed, *looks[name][1:],
                         run.name if alike else label, alike))
  return result


def _places(runs: Mapping[str, Run]) -> tuple[dict[str, str], dict[str, str]]:
  """Gives each run its group and its condition."""
  groups = _groups(runs)
  inside = _inside(runs, groups)
  flat = {name: flatten(run.config) for name, run in runs.items()}
  conditions = {name: ", ".join(f"{field_name(f)} {shown(values[f])}" for f in inside)
                for name, values in flat.items()}
  by_condition: dict[str, set[str]] = {}
  for name, condition in conditions.items():
    by_condition.setdefault(condition, set()).add(groups[name])
  settings = {(groups[name], conditions[name]) for name in runs}
  if (len(by_condition) == 1 or any(len(found) > 1 for found in by_condition.values())
      or len(settings) > _MOST_SIDE_BY_SIDE):
    return groups, conditions
  # Nothing is held while the group changes: all settings stand side by side, a colour each.
  several, long = len({*groups.values()}) > 1, len(inside) > _WORDS and len(settings) == len(runs)
  return {name: name if long else f"{groups[name]}, {conditions[name]}" if several
          else conditions[name] for name in runs}, dict.fromkeys(runs, "")


def varied(runs: Mapping[str, Run]) -> list[str]:
  """Finds the fields that tell the runs apart, less those that follow from the block."""
  groups = _groups(runs)
  chosen = set(_inside(runs, groups)) | {"train.seed"}
  if len(set(groups.values())) > 1:
    chosen |= {"model.block", "model.norm"}
    if any(run.reads_images for run in runs.values()):
      chosen |= {"optim.name", "optim.learning_rate"}
  return [f for f in varying([run.config for run in runs.values()]) if f in chosen]


def first_settings(items: Sequence[Series]) -> list[Series]:
  """Keeps, of each group, the runs of its first run's condition."""
  first: dict[str, str] = {}
  for item in items:
    first.setdefault(item.group, item.condition)
  return [item for item in items if item.condition == first[item.group]]


def _groups(runs: Mapping[str, Run]) -> dict[str, str]:
  one_block = len({(run.config.model.block, run.config.model.norm) for run in runs.values()}) == 1
  optimisers = len({run.config.optim.name for run in runs.values()})
  kinds = {name: run.config.optim.name if run.reads_images or one_block and optimisers > 1
           else run.config.model.block for name, run in runs.items()}
  norms: dict[str, set[str]] = {}
  for name, run in runs.items():
    norms.setdefault(kinds[name], set()).add(run.config.model.norm)
  return {name: f"{kind} ({runs[name].config.model.norm})" if len(norms[kind]) > 1 else kind
          for name, kind in kinds.items()}


def _inside(runs: Mapping[str, Run], groups: Mapping[str, str]) -> list[str]:
  """The fields that vary inside some group, less the seed."""
  inside: list[str] = []
  for group in dict.fromkeys(groups.values()):
    members = [run.config for name, run in runs.items() if groups[name] == group]
    inside += [f for f in varying(members) if f not in inside
               and f not in ("train.seed", "model.norm") and not f.startswith(_OBSERVING)]
  # The warmup follows from the steps: one of them names the condition.
  if "train.steps" in inside and "optim.warmup_steps" in inside:
    inside.remove("optim.warmup_steps")
  return inside


def field_name(path: str) -> str:
  """Names a dotted field as a reader says it."""
  return "optimiser" if path == "optim.name" else path.rpartition(".")[2].replace("_", " ")


def shown(value: Any) -> str:
  """Writes a config value as a reader types it."""
  if isinstance(value, bool):
    return "true" if value else "false"
  if isinstance(value, list):
    return ", ".join(map(str, value))
  return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


def thin(steps: Ints, values: Floats, points: int, largest: bool = False) -> tuple[Ints, Floats]:
  """Thins a curve to at most `points`: in each stretch of steps the mean, or the largest value.

  Args:
    values: (steps,) or (steps, layers).
    largest: keep the largest value, so that no peak is lost.

  Returns:
    The last step of each stretch, and the value of each; NaN where a stretch has no finite one.
  """
  if steps.size <= points:
    return steps, values
  edges = np.linspace(0, steps.size, points + 1).astype(int)
  finite = np.where(np.isfinite(values), values, -np.inf if largest else 0.0)
  rows = []
  for low, high in zip(edges, edges[1:]):
    if largest:
      row = finite[low:high].max(axis=0)
      rows.append(np.where(np.isneginf(row), np.nan, row))
    else:
      count = np.isfinite(values[low:high]).sum(axis=0)
      rows.append(np.where(count > 0, finite[low:high].sum(axis=0) / np.maximum(count, 1),
                           np.nan))
  return steps[edges[1:] - 1], np.array(rows)


def over_layers(values: Floats, largest: bool) -> Floats:
  """Reduces (steps, layers) to (steps,) by the largest or the mean of layers; NaN stays NaN."""
  if not values.size:
    return np.zeros(values.shape[0])
  line: Floats = values.max(axis=1) if largest else values.mean(axis=1)
  return line


def _assign(groups: list[str]) -> dict[str, str]:
  """A colour a group; the first group of a named block gets the block's own."""
  taken: dict[str, str] = {}
  others = 0
  for group in groups:
    colour = _COLOURS.get(group.partition(" ")[0])
    if colour is None or colour in taken.values():
      colour = _OTHERS[others % len(_OTHERS)]
      others += 1
    taken[group] = colour
  return taken
