"""Variants of a user's own file: the same code elsewhere trains the same bits, and leaves a run
that is measured with its own copies."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
import pytest

from of_jax import analysis, user_code, variants
from of_jax.claims.study_record import varying
from of_jax.config import Config, DataConfig
from of_jax.data.corpora import prepare
from of_jax.errors import UserError
from of_jax.models.functional import build_network
from of_jax.storage import run_directory
from of_jax.train import train

# Field -> the file in the package, what it defines, the name in the package.
SAME = {"model__norm": ("models/norms/rms", "RMSNorm", "rms"),
        "model__block": ("models/blocks/pre", "PreNorm", "pre"),
        "model__mlp": ("models/mlps/relu", "ReLUMLP", "relu"),
        "model__attention_gate": ("models/gates/head", "HeadGate", "head"),
        "model__attention_softmax": ("models/softmaxes/clipped", "ClippedSoftmax", "clipped"),
        "optim__name": ("optim/optimizers/adamw", "from_config", "adamw")}
TWEO = """
import jax.numpy as jnp

def term(x_BxTxD):
  "TWEO's, with a threshold of 3."
  return jnp.mean((jnp.abs(x_BxTxD) * (1 / (3 + 1e-6))) ** 4, -1)
"""
QUICK = {"train__steps": 3, "model__depth": 2, "telemetry__level": "off", "train__eval_every": 3}


@pytest.fixture
def own(tmp_path: Path) -> dict[str, str]:
  """The package's own files, as a user's: field -> FILE.py:NAME."""
  package = Path(variants.__file__).parent
  fields = {}
  for field, (file, name, _) in SAME.items():
    mine = tmp_path / f"my_{Path(file).name}.py"
    mine.write_text((package / f"{file}.py").read_text())
    fields[field] = f"{mine}:{name}"
  (tmp_path / "my_term.py").write_text(TWEO)
  return {**fields, "train__loss_term": f"{tmp_path}/my_term.py:term"}


def losses(run: Path, name: str) -> list[tuple[float, float]]:
  return [(line["loss"], line[name]) for line in run_directory.read_lines(run / "metrics.jsonl")
          if line["split"] == "train"]


def quiet(config: Config, run: Path) -> None:
  train(config, run, lambda line: None)


def test_the_same_code_in_a_users_files_trains_the_same_bits(
    own: Mapping[str, str], make_config: Callable[..., Config], tmp_path: Path) -> None:
  package = {field: name for field, (_, _, name) in SAME.items()}
  # What belongs to a variant of the package may be read by a user's own.
  gamma = {"model__softmax_gamma": -0.5}
  theirs = make_config(**QUICK, **package, **gamma, train__tweo_weight=0.1)
  mine = make_config(**QUICK, **own, **gamma, train__loss_term_weight=0.1)
  quiet(theirs, tmp_path / "theirs")
  quiet(mine, tmp_path / "mine")
  assert losses(tmp_path / "mine", "loss_term") == losses(tmp_path / "theirs", "tweo")
  read = analysis.restore(tmp_path / "theirs"), analysis.restore(tmp_path / "mine", 3, True)
  jax.tree.map(np.testing.assert_array_equal, read[0].params, read[1].params)
  check_what_is_left(tmp_path / "mine", own, mine)


def check_what_is_left(run: Path, own: Mapping[str, str], config: Config) -> None:
  files = {user_code.file_of(text) for text in own.values()}
  copies = {path.name.partition("_")[2]: path for path in (run / "user_code").iterdir()}
  assert {*copies} == {file.name for file in files}
  env = json.loads((run / "env.json").read_text())
  assert env["user_code"] == {
      f"user_code/{path.name}": user_code.sha256(path) for path in copies.values()}
  # It is read with the copies, wherever the files have gone, and then no Python of it runs unasked.
  moved = run.rename(run.parent / "moved")
  names = [str(file) for file in files]
  texts = {file: file.read_text() for file in files}
  for file in files:
    file.unlink()
  there = analysis.load_run(moved)
  assert there.config.model.norm == f"{moved}/user_code/1_my_rms.py:RMSNorm"
  assert not any(name in str(there.config) for name in names)
  user_code._trusted.clear()
  user_code._module.cache_clear()
  with pytest.raises(UserError, match="the run directory brings, and was not run; --run_user_code"):
    analysis.restore(moved)
  assert analysis.restore(moved, run_user_code=True).step == 3
  for file, text in texts.items():
    file.write_text(text)
  assert varying([there.config, config]) == []
  # A finished run is left as it is, and one whose file has changed is refused.
  quiet(config, moved)
  next(iter(files)).write_text("changed = 1\n" + next(iter(texts.values())))
  with pytest.raises(UserError, match="is not what the run in .* began with"):
    quiet(config, moved)


def test_what_is_no_variant_is_said(make_config: Callable[..., Config], tmp_path: Path) -> None:
  (tmp_path / "mine.py").write_text("class Mine: pass\ndef term(x): return x.sum()\n")
  with pytest.raises(UserError, match=r"mine.py:Mine: no subclass of of_jax.models.norms.Norm"):
    build_network(make_config(model__norm=f"{tmp_path}/mine.py:Mine"))


def test_a_corpus_is_what_a_function_yields(tmp_path: Path) -> None:
  file = tmp_path / "mine.py"
  file.write_text("""
calls = []

def texts():
  for i in range(40):
    yield f"poem {i}", f"the {i} quick brown foxes jump over {i * i} lazy dogs " * 20

def numbers():
  yield from range(4)

def broken():
  yield "a"
  yield 1 / 0
""")
  data = DataConfig(corpus=f"{file}:texts", vocab_size=300, cache_dir=str(tmp_path / "cache"),
                    validation_fraction=0.2)
  lines: list[str] = []
  corpus = prepare(data, lines.append)
  assert "mine.py:texts@" in corpus.description and "40 documents" in corpus.description
  assert 0.1 < len(corpus.validation) / (len(corpus.train) + len(corpus.validation)) < 0.25
  again = prepare(data, lines.append)
  assert again.corpus_sha256 == corpus.corpus_sha256
  for name, what in (("numbers", "gives int as text 0"),
                     ("broken", r"mine\.py:13: ZeroDivisionError")):
    with pytest.raises(UserError, match=what):
      prepare(dataclasses.replace(data, corpus=f"{file}:{name}"), lines.append)
