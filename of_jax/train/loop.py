"""The run loop: one config, one run directory, from nothing or from its last checkpoint."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from of_jax import config as config_lib
from of_jax import run_directory
from of_jax.config import Config
from of_jax.data.corpora import Corpus, prepare
from of_jax.data.loader import Batches
from of_jax.errors import UserError
from of_jax.train import checkpoint, environment, writers
from of_jax.train.checkpoint import Checkpoints
from of_jax.train.progress import TrainingProgress
from of_jax.train.sharding import make_mesh, place_batch
from of_jax.train.step import State, Trainer, make_trainer

Log = Callable[[str], None]


def train(config: Config, workdir: str | Path, log: Log = print) -> None:
  """Trains a run to its end, or resumes it; a finished run returns at once.

  The numbers in metrics.jsonl and the checkpoints are functions of the config, the corpus and
  the mesh: killed at any moment and started again, the run ends in the same bits.

  Args:
    config: resolved.
    workdir: the run directory; made if it is not there.
    log: takes the lines that tell what happens.

  Raises:
    UserError: a directory that holds another config's run, data that does not fit the config,
      a mesh that does not fit the devices. Nothing has been written then.
  """
  workdir = Path(workdir)
  check_workdir(workdir, config)
  if (workdir / run_directory.DONE).exists():
    log(f"{workdir}: finished before, nothing to do")
    return
  writers.check_available(config.train)
  mesh = make_mesh(config)
  corpus = prepare(config.data, log)
  batches = Batches(corpus, config.data, config.train, jax.process_index(), jax.process_count())
  with jax.set_mesh(mesh):
    trainer = make_trainer(config, mesh)
    described = environment.describe(config, mesh, corpus, trainer.network)
    kept = checkpoint.kept_steps(config.train.steps, config.train.checkpoint_every)
    _check_corpus(workdir, described)
    _announce_disk(workdir, trainer, kept, log)
    initial = _initial_state(config, trainer)
    workdir.mkdir(parents=True, exist_ok=True)
    with run_directory.locked(workdir), Checkpoints(workdir) as checkpoints:
      resumed_at = checkpoints.latest
      _write_provenance(workdir, config, described, corpus, resumed_at)
      for name in (run_directory.METRICS, run_directory.TIMING):
        run_directory.keep_lines_until(workdir / name, resumed_at or 0)
      if resumed_at is not None:
        log(f"{workdir}: resumes after step {resumed_at} of {config.train.steps}")
        shapes = jax.eval_shape(lambda: initial)
        state = checkpoints.restore(shapes, trainer.shardings, resumed_at)
      else:
        state = initial
        checkpoints.save(state, 0)
      del initial
      _run(config, workdir, trainer, mesh, batches, checkpoints, state, resumed_at or 0, kept)
    (workdir / run_directory.DONE).touch()


def _run(config: Config, workdir: Path, trainer: Trainer, mesh: jax.sharding.Mesh,
         batches: Batches, checkpoints: Checkpoints, state: State, start: int,
         kept: list[int]) -> None:
  """Steps `start` + 1 to the last, with what is logged, evaluated and kept on the way."""
  steps, every = config.train, config.telemetry.every
  last = steps.steps
  key = jax.random.fold_in(jax.random.key(steps.seed), 1)
  log = writers.RunLog(workdir, config, start, environment.peak_flops(),
                       environment.flops_per_token(config, trainer.network))
  evaluation = [place_batch(mesh, batch) for batch in batches.eval_batches()]
  # A step's metrics are fetched after the next step is dispatched, so that the devices never wait.
  late: tuple[int, Any] | None = None
  with log, TrainingProgress(workdir.name, start, last) as progress:
    for step in range(start + 1, last + 1):
      batch = place_batch(mesh, batches.train_batch(step - 1))
      logged = step in (1, last) or step % steps.log_every == 0
      measured = logged and (step in (1, last) or step % every == 0)
      state, metrics = (trainer.step_measured if measured else trainer.step)(state, batch, key)
      if late:
        progress.update(*log.train(*late))
      late = (step, metrics) if logged else None
      evaluated = step == last or step % steps.eval_every == 0
      if not evaluated and step not in kept:
        continue
      if late:
        progress.update(*log.train(*late))
        late = None
      if evaluated:
        log.evaluation(step, _evaluate(trainer, state, evaluation))
      if step in kept:
        # What a checkpoint follows must be on disk before it: a resumed run keeps those lines.
        log.flush()
        checkpoints.save(state, step)
      log.restart_clock()
    checkpoints.wait()


def _evaluate(trainer: Trainer, state: State, batches: list[Any]) -> Any:
  total = trainer.evaluate(state["params"], batches[0])
  for batch in batches[1:]:
    total = trainer.add(total, trainer.evaluate(state["params"], batch))
  return trainer.finish(total)


def check_workdir(workdir: Path, config: Config) -> None:
  """Raises UserError if `workdir` cannot hold this config's run."""
  if workdir.exists() and not workdir.is_dir():
    raise UserError(f"--workdir={workdir}: is a file, not a folder")
  saved_at = workdir / run_directory.CONFIG
  if not saved_at.exists():
    if workdir.exists() and any(workdir.iterdir()):
      raise UserError(f"--workdir={workdir}: holds files but no run; give a new or empty folder")
    return
  changed = config_lib.differences(config_lib.from_dict(run_directory.read_json(saved_at)), config)
  if changed:
    listed = ", ".join(f"{path} {old} -> {new}" for path, (old, new) in changed.items())
    raise UserError(f"--workdir={workdir}: holds the run of another config ({listed}); "
                    "give another folder")


def _check_corpus(workdir: Path, described: dict[str, Any]) -> None:
  saved_at = workdir / run_directory.ENVIRONMENT
  if not saved_at.exists():
    return
  saved = run_directory.read_json(saved_at)
  for name in ("corpus_sha256", "tokenizer_sha256"):
    if saved[name] != described[name]:
      raise UserError(f"--workdir={workdir}: the run began with {name} {saved[name][:12]}, and "
                      f"now it is {described[name][:12]}; it cannot be resumed on other data")


def _announce_disk(workdir: Path, trainer: Trainer, kept: list[int], log: Log) -> None:
  shapes = jax.eval_shape(trainer.init, jax.random.key(0))
  each = checkpoint.bytes_of(jax.tree.leaves(shapes))
  log(f"{workdir}: {len(kept)} checkpoints of {each / 1e6:,.1f} MB, at most "
      f"{len(kept) * each / 1e6:,.1f} MB of disk, at steps {_shorten(kept)}")
  parent = next(p for p in (workdir.absolute(), *workdir.absolute().parents) if p.exists())
  free = shutil.disk_usage(parent).free
  if len(kept) * each > free:
    raise UserError(f"--workdir={workdir}: the checkpoints may take {len(kept) * each / 1e9:.1f} "
                    f"GB and {free / 1e9:.1f} GB are free; raise config.train.checkpoint_every")


def _shorten(steps: list[int]) -> str:
  text = list(map(str, steps))
  return ", ".join(text if len(text) <= 12 else [*text[:9], "...", *text[-2:]])


def _initial_state(config: Config, trainer: Trainer) -> State:
  state = trainer.init(jax.random.fold_in(jax.random.key(config.train.seed), 0))
  if config.train.init_from:
    state["params"] = checkpoint.load_parameters(
        config.train.init_from, trainer.network.shapes, trainer.shardings["params"])
  return state  # type: ignore[no-any-return]


def _write_provenance(workdir: Path, config: Config, described: dict[str, Any], corpus: Corpus,
                      resumed_at: int | None) -> None:
  """config.json, env.json and the tokenizer; a resumed run adds to env.json where it went on."""
  if jax.process_index():
    return
  run_directory.write_json(workdir / run_directory.CONFIG, config_lib.to_dict(config))
  saved_at = workdir / run_directory.ENVIRONMENT
  if resumed_at is not None and saved_at.exists():
    saved = run_directory.read_json(saved_at)
    keys = ("command", "versions", "git", "devices", "mesh")
    saved.setdefault("resumed", []).append(
        {"after_step": resumed_at, **{key: described[key] for key in keys}})
    described = saved
  run_directory.write_json(saved_at, described)
  if corpus.tokenizer_path is not None:
    shutil.copyfile(corpus.tokenizer_path, workdir / run_directory.TOKENIZER)
