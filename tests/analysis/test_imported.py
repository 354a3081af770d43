"""Foreign weights measured from the command line, as a run's checkpoint is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from of_jax.analysis import imported
from of_jax.errors import UserError
from of_jax.interop import load
from tests.golden import foreign

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
  return subprocess.run([sys.executable, "-m", "experiments.measure", *arguments], cwd=ROOT,
                        text=True, capture_output=True, timeout=600, env=dict(os.environ))


def test_measure_and_intervene(tmp_path: Path) -> None:
  """The loss is NumPy's of the model's logits, the stream's numbers are PyTorch's."""
  folder, out = foreign.save_folder(tmp_path / "model", "llama"), tmp_path / "out"
  np.save(tmp_path / "t.npy", foreign.TOKENS)
  done = run(f"--model={folder}", f"--tokens={tmp_path / 't.npy'}", f"--out={out}",
             "--sites=resid_pre", "--metrics=kurtosis,rms,max_abs",
             "--intervene=zero:resid_pre:1:top2")
  assert done.returncode == 0, done.stderr
  found = json.loads((out / "measure.json").read_text())
  model = load(folder)
  logits = model.logits(foreign.TOKENS).astype(np.float64)
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  loss = -np.take_along_axis(log_p[:, :-1], foreign.TOKENS[:, 1:, None], -1).mean()
  assert found["loss"] == pytest.approx(loss, rel=1e-5)
  assert (found["num_tokens"], found["num_tokens_measured"]) == (22, 24)
  golden = np.load(Path(foreign.__file__).with_suffix(".npz"))["llama/stream"]
  for metric, column in (("kurtosis", 0), ("rms", 2), ("max_abs", 3)):
    np.testing.assert_allclose(found["telemetry"]["resid_pre"][metric], golden[:-1, column],
                               rtol=1e-4)
  changed = found["after_intervention"]
  assert len(changed["interventions"][0]["neurons"]) == 2 and changed["loss_change"] != 0
  assert changed["telemetry"]["resid_pre"]["rms"][1] < found["telemetry"]["resid_pre"]["rms"][1]
  assert found["model"] == str(folder) and found["provenance"]["kind"] == "llama in safetensors"
  assert found["provenance"]["digest_agreed"] is False


@pytest.mark.slow
def test_text_is_read_with_its_own_tokenizer(tmp_path: Path) -> None:
  folder = foreign.save_folder(tmp_path / "model", "llama")
  words = {"</s>": 0, "a": 1, "b": 2, "?": 3}
  tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
  tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
  tokenizer.save(str(folder / "tokenizer.json"))
  (tmp_path / "text.txt").write_text("a b a a b " * 9)
  done = run(f"--model={folder}", f"--text={tmp_path / 'text.txt'}", "--sequence_length=5",
             f"--out={tmp_path / 'out'}")
  assert done.returncode == 0, done.stderr
  # 45 words and an end token: nine windows of five.
  assert json.loads((tmp_path / "out" / "measure.json").read_text())["num_tokens"] == 45


@pytest.mark.parametrize("arguments, message", (
    (["--tokens=DIR/t.npy", "--step=1"], "--step: is of runs, and --model="),
    ([], "came without data; give --tokens, --text or --corpus"),
    pytest.param(["--tokens=DIR/t.npy", "--sequence_length=99"],
                 "--sequence_length=99: the model was made for at most 16", marks=pytest.mark.slow),
    pytest.param(["--corpus=python_stdlib"], "came without a tokenizer", marks=pytest.mark.slow)))
def test_a_mistake_is_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
  folder = foreign.save_folder(tmp_path / "model", "llama")
  np.save(tmp_path / "t.npy", np.zeros(100, np.uint16))
  done = run(f"--model={folder}", *(a.replace("DIR", str(tmp_path)) for a in arguments))
  assert done.returncode == 1 and message in done.stderr, done.stderr
  assert done.stderr.startswith("error: ") and len(done.stderr.strip().splitlines()) == 1


def test_there_is_no_corpus(tmp_path: Path) -> None:
  model = imported.load(foreign.save_folder(tmp_path, "gpt2"))
  assert model.step == 0 and model.tokenizer is None
  for read in (model.batches, model.training_batch):
    with pytest.raises(UserError, match="came without a corpus"):
      read()
