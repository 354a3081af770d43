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
from tests.golden import windows as begun_windows

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads(Path(begun_windows.__file__).with_suffix(".json").read_text())


def run(*arguments: str, binary: str = "measure") -> subprocess.CompletedProcess[str]:
  return subprocess.run([sys.executable, "-m", f"experiments.{binary}", *arguments], cwd=ROOT,
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


def test_a_text_is_begun_as_the_tokenizer_does_it(tmp_path: Path) -> None:
  """OPT's begin token is its end token: PyTorch's loss behind it, over the same predictions."""
  folder, out = begun_windows.save_folder(tmp_path / "model", "opt"), tmp_path / "out"
  (tmp_path / "text.txt").write_text(begun_windows.TEXT)
  done = run(f"--model={folder}", f"--text={tmp_path / 'text.txt'}", f"--out={out}",
             f"--sequence_length={begun_windows.LENGTH}", "--sites=resid_pre", "--metrics=kurtosis")
  assert done.returncode == 0, done.stderr
  assert "behind the begin token 2" in done.stdout
  found, golden = json.loads((out / "measure.json").read_text()), GOLDEN["opt"]["yes"]
  assert found["begin_token"] == {"asked": "auto", "added": True, "id": 2}
  assert found["loss"] == pytest.approx(golden["loss"], rel=1e-5)
  assert (found["num_tokens"], found["num_tokens_measured"]) == (
      golden["predictions"], golden["tokens"])
  np.testing.assert_allclose(found["telemetry"]["resid_pre"]["kurtosis"], golden["kurtosis"],
                             rtol=1e-4)


@pytest.mark.slow
def test_begun_or_not(tmp_path: Path) -> None:
  """Quantise's loss as trained is PyTorch's too; token ids stay as they are unless it is said."""
  folder, out = begun_windows.save_folder(tmp_path / "model", "opt"), tmp_path / "out"
  (tmp_path / "text.txt").write_text(begun_windows.TEXT)
  text = (f"--text={tmp_path / 'text.txt'}", f"--sequence_length={begun_windows.LENGTH}")
  for choice, added in (("no", False), ("yes", True)):
    done = run(f"--model={folder}", *text, f"--begin_token={choice}", f"--out={out}", "--seeds=0",
               binary="quantise")
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "quantise.json").read_text())
    assert found["loss"] == pytest.approx(GOLDEN["opt"][choice]["loss"], rel=1e-5)
    assert found["begin_token"] == {"asked": choice, "added": added, "id": 2}
  np.save(tmp_path / "t.npy", np.array([[4, 5, 6, 7], [5, 6, 7, 8]]))
  np.save(tmp_path / "begun.npy", np.array([[2, 4, 5, 6, 7], [2, 5, 6, 7, 8]]))
  measured = []
  for file, choice in (("t", "auto"), ("t", "yes"), ("begun", "auto"), ("begun", "yes")):
    done = run(f"--model={folder}", f"--tokens={tmp_path / file}.npy", f"--begin_token={choice}",
               f"--out={out}", "--sites=resid_pre", "--metrics=kurtosis")
    assert done.returncode == 0, done.stderr
    assert ("token ids, read as they are" in done.stdout) is ((file, choice) == ("t", "auto"))
    measured.append(json.loads((out / "measure.json").read_text()))
  assert [one["begin_token"]["added"] for one in measured] == [False, True, False, False]
  assert [one["num_tokens_measured"] for one in measured] == [8, 10, 10, 10]
  assert [one["num_tokens"] for one in measured] == [6, 6, 8, 8]
  for one in measured[2:]:
    np.testing.assert_allclose(one["telemetry"]["resid_pre"]["kurtosis"],
                               measured[1]["telemetry"]["resid_pre"]["kurtosis"], rtol=1e-5)
  assert measured[0]["telemetry"] != measured[1]["telemetry"]


@pytest.mark.parametrize("arguments, message", (
    (["--tokens=DIR/t.npy", "--step=1"], "--step: is of runs, and --model="),
    ([], "came without data; give --tokens, --text or --corpus"),
    pytest.param(["--tokens=DIR/t.npy", "--begin_token=yes"],
                 "--begin_token=yes: no begin token is known of", marks=pytest.mark.slow),
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
