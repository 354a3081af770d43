"""Run directories in Cloud Storage: a run there leaves what it leaves in a folder."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest
from etils import epath

from of_jax.analysis import replay
from of_jax.commands import report
from of_jax.config import Config
from of_jax.errors import Preempted, UserError
from of_jax.storage import remote, run_directory
from of_jax.storage.checkpoint import Checkpoints
from of_jax.train import train
from of_jax.train.distributed import Interruption

ROOT = Path(__file__).parents[2]
URL = "gs://bucket/runs/one"
MakeConfig = Callable[..., Config]
SMALL: dict[str, Any] = {
    "model__width": 16, "model__depth": 1, "model__heads": 2, "train__steps": 4,
    "telemetry__sites": "final", "telemetry__metrics": "kurtosis", "data__eval_sequences": 8}


class Store:
  """In place of Cloud Storage: a folder. Notes what is written, in order."""

  def __init__(self, folder: Path):
    self.folder, self.written = folder, list[str]()

  def path(self, url: str) -> Any:
    return epath.Path(self.folder / url.removeprefix("gs://"))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
  found = Store(tmp_path / "store")
  monkeypatch.setattr(remote, "_path", found.path)
  put_back = remote.put_back

  def noted(directory: Path) -> None:
    before = stamps(found.folder)
    put_back(directory)
    found.written += [name for name, stamp in stamps(found.folder).items()
                      if before.get(name) != stamp]

  monkeypatch.setattr(remote, "put_back", noted)
  return found


def stamps(folder: Path) -> dict[str, int]:
  return {name: os.stat(f"{parent}/{name}").st_mtime_ns for parent, _, names in os.walk(folder)
          if "checkpoints" not in parent for name in names}


def parameters(run: str | Path, step: int) -> list[np.ndarray]:
  restored = replay.restore(run, step)
  assert restored.is_verified
  return [np.asarray(leaf) for leaf in jax.tree.leaves(restored.params)]


def test_a_run_there_is_the_run_in_a_folder(make_config: MakeConfig, tmp_path: Path, store: Store,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
  """Told to stop, killed at a save, resumed; read again; and judged by another config."""
  config = make_config(**SMALL)
  train(config, tmp_path / "here", lambda line: None)
  lines: list[str] = []
  with monkeypatch.context() as told:
    told.setattr(Interruption, "stops_at", lambda self, step: step == 2)
    with pytest.raises(Preempted, match="one: told to stop; saved step 2 of 4"):
      train(config, URL, lines.append)
  there = store.folder / "bucket/runs/one"
  assert not (there / "DONE").exists() and any(f"{URL}: " in line for line in lines)
  with monkeypatch.context() as killed:
    def kill(self: Checkpoints, *saved: Any) -> None:
      # Nothing is put back after this.
      killed.setattr(remote, "put_back", lambda directory: None)
      raise KeyboardInterrupt
    killed.setattr(Checkpoints, "save", kill)
    with pytest.raises(KeyboardInterrupt):
      train(config, URL, lines.append)
  # Logged before a save that never was.
  assert [r["step"] for r in run_directory.read_lines(there / "metrics.jsonl")][-1] > 2
  assert replay.checkpoint_steps(URL)[-1] == 2
  train(config, URL, lines.append)
  assert f"{URL}: resumes after step 2 of 4" in lines and lines[-1] == f"{URL}: finished"
  assert store.written[-1] == "DONE" and store.written.count("DONE") == 1
  assert (there / "metrics.jsonl").read_bytes() == (
      tmp_path / "here" / "metrics.jsonl").read_bytes()
  for step in (0, 2, 4):
    chex.assert_trees_all_equal(parameters(URL, step), parameters(tmp_path / "here", step))
  assert {"config.json", "env.json", "timing.jsonl"} <= set(os.listdir(there))

  lines.clear()
  train(config, URL + "/", lines.append)
  assert lines == [f"{URL}/: finished before, nothing to do"]
  with pytest.raises(UserError, match=f"{URL}: no checkpoint at step 9; there are 0, 1, 2, 3, 4"):
    replay.restore(URL, 9)
  before = stamps(there)
  with pytest.raises(UserError, match=f"--workdir={URL}: holds the run of another config"):
    train(make_config(**{**SMALL, "train__seed": 9}), URL, lines.append)
  assert stamps(there) == before
  # As a start for another run, and on a page.
  train(make_config(**{**SMALL, "train__steps": 1, "train__init_from": f"{URL}@2"}),
        tmp_path / "tuned", lambda line: None)
  assert run_directory.read_json(tmp_path / "tuned" / "env.json")["init_from"]["path"] == URL
  with remote.working(URL, writes=True) as folder:
    report.write(folder, report.terminal.console())
  assert (there / "report.html").stat().st_size > 1000


def test_damage_there_is_set_aside_there(make_config: MakeConfig, tmp_path: Path, store: Store
                                         ) -> None:
  """A checkpoint without moments, and a record that lost its lines: both named, kept, mended."""
  config = make_config(**SMALL)
  train(config, URL, lambda line: None)
  there, lines = store.folder / "bucket/runs/one", list[str]()
  whole, last = (there / "metrics.jsonl").read_bytes(), parameters(URL, 4)
  (there / "DONE").unlink()
  shutil.rmtree(there / "checkpoints" / "4" / "opt_state")
  (there / "metrics.jsonl").write_bytes(whole[:len(whole) // 3])
  train(config, URL, lines.append)
  assert any(line.startswith(f"{URL}: checkpoint 4 is damaged: it has no opt_state; set aside as ")
             or line.startswith(f"{URL}: metrics.jsonl is not what it was") for line in lines)
  assert (there / "metrics.jsonl").read_bytes() == whole and (there / "DONE").exists()
  assert (there / "metrics.jsonl.set_aside").read_bytes() == whole[:len(whole) // 3]
  chex.assert_trees_all_equal(parameters(URL, 4), last)


def test_what_changed_there_is_read_again(store: Store) -> None:
  there = store.folder / "bucket/runs/one"
  (there / "checkpoints").mkdir(parents=True)
  (there / "checkpoints" / "large").write_text("not copied")
  (there / "config.json").write_text("1")
  folder = remote.reading(URL)
  assert remote.name_of(folder) == URL and not (folder / "checkpoints").exists()
  (there / "config.json").write_text("22")
  assert remote.reading(URL) == folder and (folder / "config.json").read_text() == "22"
  assert remote.reading(folder) == folder and remote.name_of(there) == str(there)


def test_mistakes_are_one_line(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
  def unreachable(url: str) -> Any:
    raise ImportError("Please install gcsfs")
  monkeypatch.setattr(remote, "_path", unreachable)
  message = rf"{URL}: cannot be read: ImportError: Please install gcsfs; .*\.\[gcs\]"
  for read in (lambda: train(make_config(**SMALL), URL), lambda: replay.restore(URL)):
    with pytest.raises(UserError, match=message) as error:
      read()
    assert "\n" not in str(error.value)


@pytest.fixture
def emulator() -> Iterator[dict[str, str]]:
  """Variables under which gs:// is a server of this machine's."""
  pytest.importorskip("gcsfs", reason="not installed: pip install gcsfs gcp-storage-emulator")
  pytest.importorskip("gcp_storage_emulator", reason="not installed: pip install it")
  serve = ("import time; from gcp_storage_emulator.server import create_server; "
           "server = create_server('localhost', 0, in_memory=True, default_bucket='bucket'); "
           "server.start(); print(server._api._httpd.server_port, flush=True); time.sleep(3600)")
  with subprocess.Popen([sys.executable, "-c", serve], stdout=subprocess.PIPE, text=True,
                        stderr=subprocess.DEVNULL) as process:
    assert process.stdout is not None
    url = f"http://localhost:{int(process.stdout.readline())}"
    yield {"STORAGE_EMULATOR_HOST": url, "TENSORSTORE_GCS_HTTP_URL": url}
    process.kill()


@pytest.mark.slow
def test_by_the_protocol_of_cloud_storage(emulator: dict[str, str], token_file: Path,
                                          tmp_path: Path) -> None:
  """The binaries, with the clients that a user has: killed, resumed, measured again."""
  environment = {**os.environ, **emulator, "JAX_NUM_CPU_DEVICES": "1"}

  def command(binary: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"experiments.{binary}", *arguments]

  training = [f"--config.data.corpus=tokens:{token_file}", "--config.data.vocab_size=64",
              "--config=experiments/configs/ladder.py:tiny", "--config.train.steps=60",
              "--config.train.checkpoint_every=10", "--config.train.batch_size=4",
              "--config.train.sequence_length=32", "--config.train.eval_every=20",
              "--config.data.eval_sequences=8", "--config.train.tensorboard=false"]
  first = subprocess.Popen(command("train", f"--workdir={URL}", *training), cwd=ROOT,
                           env=environment, stdout=subprocess.DEVNULL)
  measured = command("measure", f"--run={URL}", "--step=10", f"--out={tmp_path / 'out'}",
                     "--metrics=kurtosis")
  deadline = time.monotonic() + 300
  while subprocess.run(measured, cwd=ROOT, env=environment, capture_output=True).returncode:
    assert time.monotonic() < deadline and first.poll() is None
  first.kill()
  first.wait()
  for workdir in (URL, str(tmp_path / "here")):
    subprocess.run(command("train", f"--workdir={workdir}", *training), cwd=ROOT, env=environment,
                   check=True, stdout=subprocess.DEVNULL)
  results = []
  for run in (URL, str(tmp_path / "here")):
    out = tmp_path / "measured"
    subprocess.run(command("measure", f"--run={run}", f"--out={out}"), cwd=ROOT, env=environment,
                   check=True)
    results.append(run_directory.read_json(out / "measure.json"))
  assert results[0]["model"] == URL
  for name in ("telemetry", "loss", "step"):
    assert results[0][name] == results[1][name]
