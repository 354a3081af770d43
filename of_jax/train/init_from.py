"""Parameters that a run starts from, where they are not freshly drawn: `train.init_from`.

Enters: a run directory, or weights that were not trained here. Leaves: parameters laid out over the
mesh, and what env.json says of where they came from. A run that resumes never comes here.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from of_jax import config as config_lib
from of_jax import interop, user_code
from of_jax.config import Config, ModelConfig, OptimConfig, own_code
from of_jax.config.paths import expanded
from of_jax.errors import UserError
from of_jax.interop.source import Source
from of_jax.interop.weight_sets import split_choice
from of_jax.models.functional import Network, Parameters, build_network
from of_jax.storage import checkpoint, remote, run_directory, sources
from of_jax.storage.digest import as_text, digest

# Fields in which a model may differ and compute the same.
_NO_FUNCTION = ("scan_layers", "remat", "compute_dtype", "dropout", "embedding_dropout",
                "attention_dropout", "init_std", "attention_init", "position_init_std")


@dataclasses.dataclass(frozen=True)
class InitialParameters:
  """Parameters that were trained elsewhere, and where they came from.

  Attributes:
    params: float32, with the network's names and shapes, laid out over the mesh.
    record: for env.json: `path`, `step` (null for foreign weights), `kind`, `digest` (see
      of_jax.storage.digest; at step 0 for foreign weights), `differs`, the fields of the model's
      config that have another value there, and `notes` on how foreign files were read.
  """

  params: Parameters
  record: dict[str, Any]


def check(config: Config) -> None:
  """Checks that what `train.init_from` names, if anything, is there and can be opened.

  Raises:
    UserError: it names nothing that a run can start from.
  """
  if config.train.init_from:
    _open(config.train.init_from)


def load(config: Config, network: Network, shardings: Any, log: Callable[[str], None]
         ) -> InitialParameters | None:
  """Reads the parameters that `train.init_from` names; returns None where it is empty.

  Args:
    config: resolved.
    network: the one that the config describes.
    shardings: a tree with the sharding of every parameter.
    log: is given one line on where the parameters come from.

  Raises:
    UserError: nothing there to read, or parameters of other names or shapes.
  """
  named = config.train.init_from
  if not named:
    return None
  source, notes = _open(named), []
  if isinstance(source, Source):
    theirs, step, kind = source.config(), None, source.kind
    params = _foreign(named, source, theirs, network, shardings)
    path, notes = Path(source.where), [*source.notes, *source.family.settings.notes]
  else:
    path, wanted = source
    params, step = sources.load_parameters(named, network.shapes, shardings)
    assert wanted in (step, None)
    kind = "run directory"
    saved = run_directory.read_json(path / run_directory.CONFIG)
    # Not what was measured: files of the user's own metrics may be gone.
    whole = own_code.of_run(config_lib.from_dict({
        section: saved[section] for section in ("model", "optim", "train", "data")}), path)
    theirs = config_lib.resolve(dataclasses.replace(whole, optim=OptimConfig()))
  found = as_text(digest(params, step or 0))
  differs = _differences(theirs.model, config.model)
  log(f"starts from {named}: {kind}, digest {found[:16]}"
      + (f"; the model differs in {', '.join(differs)}" if differs else "")
      + "".join(f"; {note}" for note in notes))
  return InitialParameters(params, {
      "path": remote.name_of(path.absolute()), "step": step, "kind": kind, "digest": found,
      "differs": differs, "notes": notes})


def _open(named: str) -> Source | tuple[Path, int | None]:
  """Opens a foreign model, or finds (run directory, step)."""
  name, weights = split_choice(named)
  path = expanded(name)
  ours = (path / run_directory.CHECKPOINTS).is_dir()
  if path.exists() and not ours and (path.is_file() or (path / run_directory.CONFIG).exists()):
    try:
      return interop.open_source(path, weights)
    except UserError as error:
      raise UserError(f"config.train.init_from={named}: {error}") from None
  return sources.parse_source(named)


def _foreign(named: str, source: Source, config: Config, network: Network, shardings: Any
             ) -> Parameters:
  from of_jax.interop.pretrained import read_parameters
  theirs = build_network(config)
  # Before numbers are read: of a large model that takes minutes.
  checkpoint.check_same_shapes(f"config.train.init_from={named}", network.shapes, theirs.shapes)
  try:
    params, _ = read_parameters(source, theirs)
  except UserError as error:
    raise UserError(f"config.train.init_from={named}: {error}") from None

  def place(array: np.ndarray, sharding: Any) -> jax.Array:
    # Of each process, what its own devices hold.
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

  placed: Parameters = jax.tree.map(place, params, shardings)
  return placed


def _differences(theirs: ModelConfig, ours: ModelConfig) -> list[str]:
  pairs = ((field.name, *(user_code.shown(getattr(model, field.name)) for model in (theirs, ours)))
           for field in dataclasses.fields(ModelConfig) if field.name not in _NO_FUNCTION)
  return [f"{name} ({old} there, {new} here)" for name, old, new in pairs if old != new]
