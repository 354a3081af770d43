"""The cache: opened when good, rebuilt when not, whole at every moment."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from of_jax.data import corpora, folder
from of_jax.errors import UserError

ROOT = Path(corpora.__file__).parents[2]


def entry_of(corpus: corpora.Corpus) -> Path:
  return corpus.tokenizer_path.parent


def state(path: Path) -> dict[str, tuple[int, int]]:
  return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in path.iterdir()}


def test_the_second_opening_builds_nothing_and_says_nothing(make_data, log):
  first = corpora.prepare(make_data(), log)
  before = state(entry_of(first))
  log.clear()
  second = corpora.prepare(make_data(), log)
  assert state(entry_of(second)) == before and log == []
  assert np.array_equal(first.train, second.train) and first.description == second.description


def test_whatever_decides_the_content_is_in_the_key(make_data, text_folder, log):
  entries = {entry_of(corpora.prepare(make_data(**change), log))
             for change in ({}, {"vocab_size": 290}, {"validation_fraction": 0.2})}
  (text_folder / "part0" / "file0.py").write_text("changed = 1\n" * 30)
  entries.add(entry_of(corpora.prepare(make_data(), log)))
  assert len(entries) == 4


def _truncate(entry: Path) -> None:
  with (entry / "train.bin").open("r+b") as file:
    file.truncate(100)


def _flip(entry: Path) -> None:
  raw = bytearray((entry / "validation.bin").read_bytes())
  raw[40] ^= 1
  (entry / "validation.bin").write_bytes(raw)


def _change_meta(entry: Path) -> None:
  meta = json.loads((entry / "meta.json").read_text())
  (entry / "meta.json").write_text(json.dumps({**meta, "end_token": 7}))


def _foreign(entry: Path) -> None:
  shutil.rmtree(entry)
  entry.mkdir()
  (entry / "holiday.jpg").write_text("not ours")


@pytest.mark.parametrize("damage, said", [
    (_truncate, "train.bin is truncated"),
    (_flip, "validation.bin does not have the sha256 in meta.json"),
    (_change_meta, "meta.json was changed"),
    (lambda entry: (entry / "meta.json").write_text("{"), "meta.json cannot be read"),
    (lambda entry: (entry / "tokenizer.json").unlink(), "tokenizer.json is missing"),
    (lambda entry: (entry / "train.bin").unlink(), "train.bin is missing"),
    (_foreign, "it has no meta.json"),
])
def test_a_damaged_entry_is_said_and_rebuilt(make_data, log, damage, said):
  corpus = corpora.prepare(make_data(), log)
  good = np.array(corpus.train), np.array(corpus.validation)
  damage(entry_of(corpus))
  log.clear()
  again = corpora.prepare(make_data(), log)
  assert [line for line in log if said in line and "built anew" in line]
  assert np.array_equal(again.train, good[0]) and np.array_equal(again.validation, good[1])
  assert sorted(p.name for p in entry_of(again).iterdir()) == [
      "meta.json", "tokenizer.json", "train.bin", "validation.bin"]
  assert not list(entry_of(again).parent.glob(".*building*"))


def test_an_open_corpus_survives_the_rebuilding_of_its_entry(make_data, log):
  corpus = corpora.prepare(make_data(), log)
  before = np.array(corpus.train)
  (entry_of(corpus) / "meta.json").unlink()
  corpora.prepare(make_data(), log)
  assert np.array_equal(corpus.train, before)


def test_an_interrupted_build_leaves_no_entry_and_its_rest_is_cleared(make_data, log, monkeypatch):
  def interrupted(*_):
    raise KeyboardInterrupt
  with monkeypatch.context() as patch:
    patch.setattr(folder, "write_meta", interrupted)
    with pytest.raises(KeyboardInterrupt):
      corpora.prepare(make_data(), log)
  cache_dir = Path(make_data().cache_dir)
  assert [p for p in cache_dir.iterdir() if p.is_dir()] == []
  corpus = corpora.prepare(make_data(), log)
  killed = cache_dir / f".{entry_of(corpus).name}.building-killed"
  killed.mkdir()
  shutil.rmtree(entry_of(corpus))
  corpora.prepare(make_data(), log)
  assert not killed.exists()


_PREPARE = """
import json, pathlib, sys, time
from of_jax.config import DataConfig
from of_jax.data import corpora

marker = pathlib.Path(sys.argv[2])

def log(line):
  print(line)
  if "another process is preparing it" in line:
    marker.touch()

def write_once_the_other_waits(*args):
  deadline = time.monotonic() + 30
  while not marker.exists() and time.monotonic() < deadline:
    time.sleep(0.01)
  return write(*args)

write, corpora._write_tokens = corpora._write_tokens, write_once_the_other_waits
print(corpora.prepare(DataConfig(**json.loads(sys.argv[1])), log).description)
"""


def test_of_two_processes_at_once_one_builds_and_the_other_waits(make_data, tmp_path):
  command = [sys.executable, "-c", _PREPARE, json.dumps(vars(make_data())), tmp_path / "waits"]
  processes = [subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE)
               for _ in range(2)]
  outputs = [p.communicate(timeout=60)[0].splitlines() for p in processes]
  assert [p.returncode for p in processes] == [0, 0]
  assert outputs[0][-1] == outputs[1][-1]
  said = outputs[0] + outputs[1]
  assert sum("training a byte-level BPE" in line for line in said) == 1
  assert sum("another process is preparing it" in line for line in said) == 1


def test_a_cache_that_cannot_be_written_is_one_line(make_data, tmp_path, log, monkeypatch):
  (tmp_path / "file").write_text("in the way")
  with pytest.raises(UserError, match="cache_dir=.*/file/cache: cannot be written: Not a direc"):
    corpora.prepare(make_data(cache_dir=str(tmp_path / "file" / "cache")), log)

  def full(*_, **__):
    raise OSError(28, "No space left on device")
  monkeypatch.setattr(corpora, "_write_tokens", full)
  with pytest.raises(UserError, match="cannot be written: No space left on device"):
    corpora.prepare(make_data(), log)


def test_a_read_only_cache_is_opened(make_data, log):
  corpus = corpora.prepare(make_data(), log)
  cache_dir = Path(make_data().cache_dir)
  cache_dir.chmod(0o555)
  try:
    if os.access(cache_dir, os.W_OK):
      pytest.skip("this user may write everywhere")
    assert corpora.prepare(make_data(), log).description == corpus.description
    with pytest.raises(UserError, match="cannot be written: Permission denied"):
      corpora.prepare(make_data(vocab_size=290), log)
  finally:
    cache_dir.chmod(0o755)


def test_a_good_entry_is_opened_without_a_write(make_data, log, monkeypatch):
  corpora.prepare(make_data(), log)

  def refuse(*_, **__):
    raise PermissionError(13, "Permission denied")
  monkeypatch.setattr(corpora.cache.Path, "mkdir", refuse)
  monkeypatch.setattr(corpora.cache.tempfile, "mkdtemp", refuse)
  corpora.prepare(make_data(), log)
