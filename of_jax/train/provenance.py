"""Provenance of a run: config.json, env.json, and the checks before a run begins."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from of_jax import config as config_lib
from of_jax import user_code
from of_jax.config import Config, own_code
from of_jax.config.paths import check_no_pattern, check_output_folder, check_utf8, expanded
from of_jax.data.folder import Described
from of_jax.errors import UserError
from of_jax.models.functional import Network
from of_jax.optim import describe, lay_out
from of_jax.storage import checkpoint, remote, run_directory
from of_jax.train import distributed, environment
from of_jax.train.trainer import Trainer
from of_jax.train.types import Log

# What to do where processes see different run directories.
SHARE = "give all processes the same --workdir, in a folder that their machines share"
# Seconds after which another machine has seen a new file: network file systems look so often.
_SEEN_WITHIN = 70.0


def check_workdir(workdir: Path, config: Config) -> None:
  """Checks that `workdir` can hold this config's run.

  Raises:
    UserError: not a folder, not writable, held by another process, or full of something else, as
      another config's run.
  """
  check_utf8(f"--workdir={workdir}", workdir)
  check_no_pattern(f"--workdir={workdir}", workdir)
  check_output_folder(f"--workdir={workdir}", expanded(workdir, f"--workdir={workdir}"))
  if workdir.exists() and distributed.is_writer():
    # Tried now, so that nobody waits for data and compiler to hear it.
    with run_directory.locked(workdir):
      pass
  saved_at = workdir / run_directory.CONFIG
  if not saved_at.exists():
    # Hidden files are what a process killed in the middle of writing config.json leaves.
    if workdir.exists() and any(not p.name.startswith(".") for p in workdir.iterdir()):
      raise UserError(f"--workdir={workdir}: holds files but no run; give a new or empty folder")
    return
  # Resolved, for the fields that a run of an older version does not have.
  try:
    saved = config_lib.resolve(config_lib.from_dict(run_directory.read_json(saved_at)))
  except UserError as error:
    raise UserError(f"--workdir={workdir}: {run_directory.CONFIG}: {error}") from None
  changed = config_lib.differences(saved, config)
  if changed:
    listed = ", ".join(f"{path} {old} -> {new}" for path, (old, new) in changed.items())
    raise UserError(f"--workdir={workdir}: holds the run of another config ({listed}); "
                    "give another folder")


def check_user_code(workdir: Path, config: Config) -> None:
  """Checks that a run to resume has the user's metrics and variants that it began with.

  Raises:
    UserError: a file of `telemetry.user_metrics`, or one that another field names, has changed.
  """
  for source, copy, field in _user_files(workdir, config):
    if copy.exists() and copy.read_bytes() != source.read_bytes():
      raise UserError(f"config.{field}: {source} is not what the run in {workdir} "
                      f"began with, {copy}; give another folder")


def _user_files(workdir: Path, config: Config) -> list[tuple[Path, Path, str]]:
  """Lists (file, its copy in the run directory, the field) of every file of the user's own code."""
  files = dict.fromkeys(text.rpartition(":")[0] for text in config.telemetry.user_metrics)
  metrics = [(expanded(file), workdir / run_directory.USER_METRICS / f"{i}_{Path(file).name}",
              "telemetry.user_metrics") for i, file in enumerate(files)]
  fields = {user_code.split(text)[0]: field for field, text in own_code.named(config).items()}
  return [*metrics, *((expanded(file), copy, fields[file])
                      for file, copy in own_code.copies(config, workdir).items())]


def hashes_of_user_code(config: Config) -> dict[str, str]:
  """The sha256 of every file of the user's own code, by its copy's place in the run directory."""
  return {str(copy): user_code.sha256(source)
          for source, copy, _ in _user_files(Path(), config)}


def check_environment(workdir: Path, described: dict[str, Any], log: Log) -> None:
  """Checks that a run to resume reads the data that it began on, with the same settings of JAX.

  A line says where its mesh is another.

  Raises:
    UserError: the corpus or the tokenizer has another hash, or a setting another value, than
      env.json says.
  """
  saved_at = workdir / run_directory.ENVIRONMENT
  if not saved_at.exists():
    return
  saved = run_directory.read_object(saved_at)
  ours, theirs = described["special_tokens"], saved.get("special_tokens")
  if theirs not in (None, ours):
    raise UserError(f"--workdir={workdir}: the run began with the special tokens {theirs}, and now "
                    f"they are {ours}; set config.data.end_token_id and data.begin_token_id")
  for name in ("corpus_sha256", "tokenizer_sha256"):
    if not isinstance(saved.get(name), str):
      raise UserError(f"{saved_at}: lacks {name}; it is not what the run left")
    if saved[name] != described[name]:
      raise UserError(f"--workdir={workdir}: the run began with {name} {saved[name][:12]}, and "
                      f"now it is {described[name][:12]}; it cannot be resumed on other data")
  # Those before it have none.
  for name, value in saved.get(environment.SETTINGS, {}).items():
    now = described[environment.SETTINGS].get(name, value)
    if now != value:
      raise UserError(f"--workdir={workdir}: the run began with {name}={value}, and now it is "
                      f"{now}, under which its numbers are others; set {name.upper()}={value}")
  began, now = saved.get("mesh"), described.get("mesh")
  if began is not None and began != now:
    log(f"{workdir}: began on the mesh {began} and goes on on {now}: not in the same bits")


def announce_disk(workdir: Path, trainer: Trainer, kept: list[int],
                  log: Callable[[str], None], runs: int = 1) -> None:
  """Tells how much disk the checkpoints will take, and checks that it is free.

  Args:
    workdir: the run directory, or the folder that holds those of several `runs`.
    trainer: the trainer of one run.
    kept: the steps of a run's checkpoints.
    log: is given the line.
    runs: how many runs leave such checkpoints.

  Raises:
    UserError: the disk has too little room; an object store is not asked.
  """
  shapes = jax.eval_shape(trainer.init, jax.random.key(0))
  each = checkpoint.bytes_of(jax.tree.leaves(shapes))
  total = runs * len(kept) * each
  several = f"{runs} runs with each " if runs > 1 else ""
  log(f"{workdir}: {several}{len(kept)} checkpoints of {each / 1e6:,.1f} MB, at most "
      f"{total / 1e6:,.1f} MB of disk, at steps {_shorten(kept)}")
  if remote.is_url(remote.name_of(workdir)):
    return
  parent = next(p for p in (workdir.absolute(), *workdir.absolute().parents) if p.exists())
  free = shutil.disk_usage(parent).free
  if total > free:
    raise UserError(f"--workdir={workdir}: the checkpoints may take {total / 1e9:.1f} "
                    f"GB and {free / 1e9:.1f} GB are free; raise config.train.checkpoint_every")


def _shorten(steps: list[int]) -> str:
  text = list(map(str, steps))
  return ", ".join(text if len(text) <= 12 else [*text[:9], "...", *text[-2:]])


def write_config(workdir: Path, config: Config, network: Network) -> None:
  """Writes config.json: every field, and what the optimiser does with each parameter.

  The files of the user's own metrics and variants are copied beside it.
  """
  if distributed.is_writer():
    layout = lay_out(config.optim, network.roles, network.axes, network.shapes)
    run_directory.write_json(workdir / run_directory.CONFIG, {
        config_lib.SCHEMA: config_lib.SCHEMA_VERSION, **config_lib.to_dict(config),
        config_lib.PARAMETERS: describe(config.optim, layout)})
    for source, copy, _ in _user_files(workdir, config):
      copy.parent.mkdir(exist_ok=True)
      shutil.copyfile(source, copy)


def check_shared(workdir: Path) -> None:
  """Checks that every process of the job finds the config.json that process 0 has just written.

  Raises:
    UserError: in every process, if one does not: its folder is another than that of process 0.
  """
  if jax.process_count() == 1 or remote.is_url(remote.name_of(workdir)):
    return  # Of a run in a store, each machine has a mirror of its own.
  distributed.wait_for_all("config.json")
  deadline = time.monotonic() + _SEEN_WITHIN
  while not (workdir / run_directory.CONFIG).is_file() and time.monotonic() < deadline:
    time.sleep(0.1)
  distributed.check_agreement(
      {"the run directory": (workdir / run_directory.CONFIG).is_file()}, SHARE)


def write_environment(workdir: Path, described: dict[str, Any], corpus: Described,
                      resumed_at: int | None) -> None:
  """Writes env.json, the clone's uncommitted changes as a patch, and the tokenizer.

  A resumed run adds to env.json where and how it went on, and a patch of its own if it has one.

  Args:
    workdir: the run directory.
    described: what env.json says, from of_jax.train.environment.
    corpus: the data that the run reads.
    resumed_at: the step after which the run goes on; None for a new run.
  """
  if not distributed.is_writer():
    return
  saved_at, patch = workdir / run_directory.ENVIRONMENT, run_directory.SOURCE_DIFF
  changes = environment.uncommitted() if described["git"]["dirty"] else ""
  if resumed_at is not None and saved_at.exists():
    saved = run_directory.read_object(saved_at)
    keys = ("command", "versions", "git", "launch", "devices", "mesh")
    if not isinstance(saved.setdefault("resumed", []), list):
      raise UserError(f"{saved_at}: its resumed is no list; it is not what the run left")
    saved["resumed"].append(
        {"after_step": resumed_at, **{key: described[key] for key in keys}})
    described, patch = saved, f"{Path(patch).stem}_after_{resumed_at}.diff"
  run_directory.write_json(saved_at, described)
  if changes:
    (workdir / patch).write_text(changes)
  if corpus.tokenizer_path is not None:
    shutil.copyfile(corpus.tokenizer_path, workdir / run_directory.TOKENIZER)
