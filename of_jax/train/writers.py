"""Writers of one run's records: JSON lines, TensorBoard, Weights & Biases."""

import contextlib
import errno
import importlib.util
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from of_jax.config import Config, TrainConfig, to_dict
from of_jax.errors import UserError
from of_jax.storage import run_directory
from of_jax.train import distributed
from of_jax.train.optional import Optional, Record, Writer
from of_jax.train.types import Log

# Metrics on the host.
Fetched = Mapping[str, Any]


class JsonLines:
  """A line a record; what is not finite is null.

  Raises:
    OSError: with the file's name, from all methods; from `flush` too where the file that is written
      is no longer the one of that name, as in a folder that was moved away.
  """

  def __init__(self, path: Path):
    self._path, self._file = path, path.open("a")

  def write(self, record: Record) -> None:
    with self._named():
      self._file.write(json.dumps(run_directory.plain(record), allow_nan=False) + "\n")

  def flush(self) -> None:
    with self._named():
      self._file.flush()
      if self._path.stat().st_size < os.fstat(self._file.fileno()).st_size:
        raise OSError(errno.ESTALE, "another file was put in its place")

  def close(self) -> None:
    with self._named():
      self._file.close()

  @contextlib.contextmanager
  def _named(self) -> Iterator[None]:
    try:
      yield
    except OSError as error:
      raise OSError(error.errno, error.strerror, str(self._path)) from error


class TensorBoard:
  """Scalars `SPLIT/loss` (and its like), and `SPLIT/METRIC/SITE/LAYER`, a role in place of a site
  for what is measured of the optimiser.

  Written event by event: SummaryWriter has a queue and a thread that die in silence on a full disk,
  and wait for days where the clock was set back.
  """

  def __init__(self, workdir: Path, resumed_at: int):
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    # A name of its own, whatever the clock says.
    self._writer = EventsWriter(str(workdir / "events"), f".{run_directory.unique()}")
    # Steps that a killed process logged after the checkpoint are hidden, not shown twice.
    self._writer.write_event(Event(
        step=resumed_at + 1, session_log=SessionLog(status=SessionLog.START)))

  def write(self, record: Record) -> None:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.summary import scalar

    for name, value in scalars(record):
      # metrics.jsonl says null of what is not finite.
      if math.isfinite(value):
        self._writer.write_event(Event(
            step=record["step"], wall_time=time.time(), summary=scalar(name, value)))

  def flush(self) -> None:
    self._writer.flush()

  def close(self) -> None:
    self._writer.close()


class WeightsAndBiases:
  """Writes the scalars to a Weights & Biases project; a resumed run keeps the run's id."""

  def __init__(self, workdir: Path, project: str, config: Record):
    import wandb
    self._run = wandb.init(project=project, dir=str(workdir), name=workdir.name,
                           id=workdir.resolve().as_posix().replace("/", "-")[-64:].strip("-"),
                           resume="allow", config=dict(config))

  def write(self, record: Record) -> None:
    self._run.log(dict(scalars(record)), step=record["step"])

  def flush(self) -> None:
    """Its own process sends what was logged."""

  def close(self) -> None:
    self._run.finish()


def check_available(train: TrainConfig) -> None:
  """Raises UserError if a writer that the config asks for is not installed."""
  if train.wandb_project and importlib.util.find_spec("wandb") is None:
    raise UserError(f"config.train.wandb_project={train.wandb_project}: wandb is not installed; "
                    "pip install -e '.[wandb]'")


class RunLog:
  """The log of one run: turns metrics into records and hands them to its writers; `with` closes it.

  Several runs that share their steps have one each, see of_jax.train.outputs.RunOutputs. What a
  study records of its finished runs is of_jax.claims.study_record's.

  metrics.jsonl holds functions of config, seed and step alone; what a clock says goes to
  timing.jsonl. Only process 0 writes. Where metrics.jsonl cannot be written, OSError is raised.
  """

  def __init__(self, workdir: Path, config: Config, start: int, peak_flops: float | None,
               flops_per_token: int, say: Log = print):
    train = config.train
    self._metrics: list[Writer] = []
    self._timing: list[Writer] = []
    if distributed.is_writer():
      # The record alone is needed: the run goes on without the others.
      self._metrics.append(JsonLines(workdir / run_directory.METRICS))
      self._timing.append(Optional(
          f"{workdir}: {run_directory.TIMING}",
          lambda: JsonLines(workdir / run_directory.TIMING), say))
      if train.tensorboard:
        self._metrics.append(Optional(
            f"{workdir}: TensorBoard", lambda: TensorBoard(workdir, start), say))
      if train.wandb_project:
        self._metrics.append(Optional(
            f"{workdir}: Weights & Biases",
            lambda: WeightsAndBiases(workdir, train.wandb_project, to_dict(config)), say))
    self._tokens_per_step = train.batch_size * train.sequence_length
    self._peak_flops, self._flops_per_token = peak_flops, flops_per_token
    self._logged = start
    # The largest over layers at the stream, when it was measured last.
    self.kurtosis: float | None = None
    self.restart_clock()

  def __enter__(self) -> "RunLog":
    return self

  def __exit__(self, *_: object) -> None:
    with contextlib.ExitStack() as closing:
      for writer in self._metrics + self._timing:
        closing.callback(writer.close)

  def restart_clock(self) -> None:
    """Leaves what happened since the last record out of the timing."""
    self._clock = time.perf_counter()

  def leave_out(self, seconds: float) -> None:
    """Leaves time that was no step's out of the next record's timing."""
    self._clock += seconds

  def train(self, step: int, metrics: Record) -> tuple[int, float, float, float | None]:
    """Writes a step's metrics and timing; returns step, loss, tokens a second and MFU."""
    fetched = jax.device_get(metrics)
    seconds = time.perf_counter() - self._clock
    self.restart_clock()
    rate = (step - self._logged) * self._tokens_per_step / seconds
    mfu = rate * self._flops_per_token / self._peak_flops if self._peak_flops else None
    self._logged = step
    measured = fetched.get("telemetry", {}).get("resid_pre", {}).get("kurtosis")
    if measured is not None and np.size(measured):
      self.kurtosis = float(np.max(measured))
    for writer in self._metrics:
      writer.write({"step": step, "split": "train", **fetched})
    for writer in self._timing:
      writer.write({"step": step, "seconds": seconds, "tokens_per_second": rate, "mfu": mfu})
    return step, float(fetched["loss"]), rate, mfu

  def evaluation(self, step: int, metrics: Record) -> Fetched:
    """Writes what an evaluation found, and returns it fetched."""
    fetched: Fetched = jax.device_get(metrics)
    for writer in self._metrics:
      writer.write({"step": step, "split": "eval", **fetched})
    return fetched

  def flush(self) -> None:
    """Hands everything written on, so that a killed process loses none."""
    for writer in self._metrics + self._timing:
      writer.flush()


def scalars(record: Record) -> Iterator[tuple[str, float]]:
  """Lists names and values of everything numeric in a record."""
  split = record.get("split", "timing")
  for name, value in record.items():
    if name in ("loss", "accuracy", "learning_rate", "grad_norm", "tweo", "loss_term"):
      yield f"{split}/{name}", float(value)
  for site, metrics in [*record.get("telemetry", {}).items(),
                        *record.get("optimizer", {}).items()]:
    for metric, layers in metrics.items():
      # Lists, as of the top neurons, are no curves.
      for layer, value in enumerate(layers if np.ndim(layers) == 1 else ()):
        yield f"{split}/{metric}/{site}/{layer:02d}", float(value)
